"""Models of Keras on its JAX backend as frozen teachers."""

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from kdjax.models.function import Function
from kdjax.runtime.errors import UserError


def function(model: Any) -> Function:
    """Returns a model as a function of its arrays and of images `[N, H, W, C]`.

    Where its last layer ends in a softmax, the logarithm of what it returns is taken:
    up to a constant that no loss of logits sees, these are the logits.

    Args:
        model: a built `keras.Model`.

    Raises:
        UserError: Keras runs on another backend, or the model is not built.
    """
    if keras.backend.backend() != "jax":
        raise UserError(
            f"Keras runs on {keras.backend.backend()!r}: set KERAS_BACKEND=jax before "
            "Python starts"
        )
    if not model.built:
        raise UserError(f"Keras's model {model.name!r} is not built: call it once")
    trained = [variable.path for variable in model.trainable_variables]
    fixed = [variable.path for variable in model.non_trainable_variables]
    names = [f"{i}/{path}" for i, path in enumerate((*trained, *fixed))]
    values = (*model.trainable_variables, *model.non_trainable_variables)
    variables = {
        name: np.asarray(value) for name, value in zip(names, values, strict=True)
    }
    last = getattr(model.layers[-1], "activation", None)
    first = keras.config.image_data_format() == "channels_first"

    def apply(variables: dict[str, jax.Array], images: jax.Array) -> Any:
        arrays = [variables[name] for name in names]
        split = len(trained)
        x = jnp.transpose(images, (0, 3, 1, 2)) if first else images
        with jax.numpy_rank_promotion("allow"):  # as NumPy, and so Keras, broadcasts
            outputs, _ = model.stateless_call(
                arrays[:split], arrays[split:], x, training=False
            )
        if last is keras.activations.softmax:
            return jnp.log(jnp.maximum(outputs, jnp.finfo(outputs.dtype).tiny))
        return outputs

    return Function(apply, variables, model.name)


def is_model(value: Any) -> bool:
    """Returns whether something is a model of Keras."""
    return isinstance(value, keras.Model)
