"""Networks with weights that show mistakes, for the tests of exporting them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime

from kdjax import models
from kdjax.export import onnx
from kdjax.export.deployed import Deployed

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def lively(variables, apply, images):
    """Returns variables with random BatchNorms whose statistics are the images'."""
    draw = np.random.default_rng(0)

    def change(path, leaf):
        if path[-1].key in ("scale", "bias") and leaf.ndim == 1:
            low = 0.5 if path[-1].key == "scale" else -0.5
            return draw.uniform(low, 1.5 + low / 2, leaf.shape).astype(leaf.dtype)
        return leaf

    params = jax.tree_util.tree_map_with_path(change, variables["params"])
    changed = {**variables, "params": params}
    if not jax.tree.leaves(variables.get("batch_stats", {})):
        return changed
    run = jax.jit(functools.partial(apply, train=True, mutable=["batch_stats"]))
    _, new = run(changed, images)
    # A step moves the statistics by a tenth.
    stats = jax.tree.map(
        lambda old, new: 10 * new - 9 * old,
        variables["batch_stats"],
        new["batch_stats"],
    )
    return {**changed, "batch_stats": stats}


def deployed(name, image_shape=(32, 32, 3), num_classes=10):
    """Returns a network by name, with lively weights."""
    network = models.create(name, num_classes)
    variables = models.init(jax.random.key(0), name, num_classes, image_shape)
    images = jax.random.normal(jax.random.key(1), (8, *image_shape))
    channels = slice(image_shape[2])
    return Deployed(
        name,
        num_classes,
        image_shape,
        lively(variables, network.apply, images),
        MEAN[channels],
        STD[channels],
    )


def pixels(image_shape, count=5):
    """Returns random images, uint8."""
    draw = np.random.default_rng(2)
    return draw.integers(0, 256, (count, *image_shape), np.uint8)


def normalised(images):
    """Returns images as a float32 ONNX model takes them, `[N, C, H, W]`."""
    channels = slice(images.shape[3])
    scaled = (images / 255 - MEAN[channels]) / STD[channels]
    return scaled.astype(np.float32).transpose(0, 3, 1, 2)


def run_onnx(path, images):
    """Returns a model's logits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": images})[0]


def write_function(function, image_shape, path, opset=onnx.DEFAULT, dtype=jnp.float32):
    """Writes any function of images as ONNX, and returns the model."""
    import onnx as library

    from kdjax.export.folding import fold
    from kdjax.export.graph import trace

    model = onnx.to_model(fold(trace(function, image_shape, dtype)), opset)
    library.save(model, path)
    return model
