"""Networks of PyTorch, traced by torchax: their arrays and their program are JAX's.

`params` holds a module's parameters and `batch_stats` its floating buffers, both under
the names of its state dict and in PyTorch's layouts. Images and levels are NHWC, what
the module sees is NCHW.
"""

import copy
import dataclasses
import functools
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.errors import InvalidRngError

from kdjax.models import own
from kdjax.models.foreign import functional, refusals, tracing
from kdjax.models.foreign.variables import (
    Arrays,
    constants_of,
    owners_of,
    variables_of,
)
from kdjax.runtime.errors import UserError

Make = Callable[[], torch.nn.Module]
"""Returns a new module, with PyTorch's random numbers as they are seeded."""


@dataclasses.dataclass(frozen=True, eq=False)
class TorchNetwork(own.Network):
    """A module of PyTorch's.

    Attributes:
        module: its structure; whatever its values are, those of `params` and
            `batch_stats` take their place.
        name: for errors.
        make: makes a module for every seed; None: the values of `module` are the start.
    """

    module: torch.nn.Module
    name: str
    make: Make | None = None

    def __post_init__(self) -> None:
        """Checks that the module can be called with images alone.

        Raises:
            UserError: it wants more.
        """
        parameters = list(inspect.signature(self.module.forward).parameters.values())
        if parameters and parameters[0].kind == inspect.Parameter.VAR_POSITIONAL:
            return
        for parameter in parameters[1:]:
            variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
            if parameter.default is parameter.empty and parameter.kind not in variable:
                raise UserError(
                    f"model {self.name!r}: {type(self.module).__name__}.forward wants "
                    f"{parameter.name!r} besides images"
                )

    @property
    def given(self) -> bool:
        """Whether its initial variables are given: they depend on no key."""
        return self.make is None

    def init(
        self, key: jax.Array, images: jax.Array, train: bool = False
    ) -> dict[str, Any]:
        """Returns what PyTorch initialises the module with, seeded by the key."""
        del images, train
        if self.make is None:
            return jax.tree.map(jnp.asarray, variables_of(self.module))
        specs = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
            variables_of(self.module),
        )
        seed = jax.random.bits(key, (), jnp.uint32)
        return jax.pure_callback(self._start, specs, seed)

    def _start(self, seed: Any) -> dict[str, Arrays]:
        assert self.make is not None
        return variables_of(seeded(self.make, int(seed)))

    def apply(
        self,
        variables: Mapping[str, Any],
        images: jax.Array,
        train: bool = False,
        mutable: Sequence[str] | bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Any:
        """Returns the module's outputs."""
        stats = variables.get("batch_stats", {})
        arrays = {**variables.get("params", {}), **stats}
        key = (rngs or {}).get("dropout")
        result, after = self._run(arrays, images, train, key)
        outputs = own.as_outputs(result, self.name)
        if mutable is False:
            return outputs
        new = {name: after[name].astype(leaf.dtype) for name, leaf in stats.items()}
        return outputs, {"batch_stats": new} if new else {}

    def _run(
        self, arrays: Arrays, images: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[Any, Arrays]:
        """Returns what the module returns, and its arrays after that."""
        env = tracing.environment(torch)
        start = _fixed_key() if key is None else key
        tensors = env.j2t_iso({**constants_of(self.module), **arrays})
        image = env.j2t_iso(jnp.transpose(images, (0, 3, 1, 2)))
        states = _generators()
        with (
            tracing.mode(self.module, train),
            tracing.recording(self.module, env, torch.is_tensor),
            env.override_property(prng=start),
            jax.numpy_rank_promotion("allow"),  # as PyTorch itself
            functional.remembering(),
        ):
            try:
                with env:
                    result = torch.func.functional_call(self.module, tensors, (image,))
            except Exception as error:
                if told := refusals.reason(error):
                    raise UserError(f"model {self.name!r} {told}") from error
                raise
            asked = env.param.prng is not start
        if _generators() != states:
            raise UserError(
                f"model {self.name!r} draws numbers from a generator of Python, NumPy "
                "or PyTorch that the step cannot seed; choices: torch.nn.Dropout, "
                "torch.rand and other functions of torch without generator="
            )
        if asked and not train:
            raise UserError(
                f"model {self.name!r} draws random numbers in evaluation mode as well; "
                "choices: torch.nn.Dropout, or numbers drawn only where self.training"
            )
        if asked and key is None:
            raise InvalidRngError(f"{self.name} asks for random numbers")
        return self._logits(env, result), env.t2j_iso(tensors)

    def _logits(self, env: Any, result: Any) -> Any:
        if isinstance(result, torch.Tensor):
            return env.t2j_iso(result)
        raise UserError(
            f"model {self.name!r} returns {refusals.parts(result)}; it must return "
            "logits [batch, classes]"
        )

    @property
    def head(self) -> str:
        """The path of the classifier: the last layer of weights; '' if there is none.

        timm's networks name it themselves.
        """
        layers = {
            path: part
            for path, part in self.module.named_modules()
            if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)
        }
        if hasattr(self.module, "get_classifier"):
            module: Any = self.module
            classifier = module.get_classifier()
            for path, part in layers.items():
                if part is classifier:
                    return path
        return list(layers)[-1] if layers else ""

    @property
    def num_logits(self) -> int:
        """How many classes the classifier has."""
        layer: Any = self.module.get_submodule(self.head) if self.head else None
        return 0 if layer is None else len(layer.weight)

    def with_head(self, num_classes: int) -> "TorchNetwork":
        """Returns the network with another classifier where it has other classes.

        The new one is initialised by PyTorch, seeded; all else starts as it does.
        """
        if self.num_logits == num_classes or not self.head:
            return self
        return _with_head(self, num_classes)

    def state_dict(self, variables: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Returns variables as the module's own state dict.

        Buffers of whole numbers, such as BatchNorm's counters, are the module's.
        """
        arrays = {**variables.get("params", {}), **variables.get("batch_stats", {})}
        owners = owners_of(self.module)
        state = {}
        for name, tensor in self.module.state_dict().items():
            name_there = owners.get(name, name)
            if name_there in arrays:
                array = np.array(arrays[name_there], np.float32)
                state[name] = torch.from_numpy(array)
            else:
                state[name] = tensor.detach().clone()
        return state


@functools.cache
def _fixed_key() -> jax.Array:
    """Returns a key that no result depends on: who asks for it is refused."""
    with jax.ensure_compile_time_eval():
        return jax.random.key(0)


@functools.cache
def _with_head(network: TorchNetwork, num_classes: int) -> TorchNetwork:
    def make() -> torch.nn.Module:
        module = network.make() if network.make else copy.deepcopy(network.module)
        old: Any = module.get_submodule(network.head)
        bias = old.bias is not None
        if isinstance(old, torch.nn.Linear):
            new: Any = torch.nn.Linear(old.in_features, num_classes, bias)
        else:
            new = torch.nn.Conv2d(old.in_channels, num_classes, 1, bias=bias)
        module.set_submodule(network.head, new)
        return module

    return TorchNetwork(seeded(make, 0), network.name, make)


def seeded(make: Make, seed: int) -> torch.nn.Module:
    """Returns a new module; the process's random numbers stay as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            return make()
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def is_module(value: Any) -> bool:
    """Returns whether something is a module of PyTorch."""
    return isinstance(value, torch.nn.Module)


def _generators() -> tuple[Any, ...]:
    """Returns the state of the generators of random numbers that no key seeds."""
    numpy: Any = np.random.get_state()
    return (
        random.getstate(),
        numpy[1].tobytes(),
        numpy[2],
        torch.random.get_rng_state().numpy().tobytes(),
    )
