"""How a module of PyTorch runs while it is traced: torchax's environment, its modes."""

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax

from kdjax.models import capture
from kdjax.models.foreign import functional, operations
from kdjax.models.foreign.refusals import CUDA, GENERATOR, NotTracedError
from kdjax.runtime import private_names
from kdjax.runtime.errors import UserError

if TYPE_CHECKING:
    import torch


_DEVICE = "jax"
"""Where a module's images are, by torchax's name."""


@functools.cache
def environment(torch: ModuleType) -> Any:
    """Returns torchax's environment in which modules are traced.

    Args:
        torch: the library.

    Raises:
        UserError: torchax is not installed.
    """
    if importlib.util.find_spec("torchax") is None:
        raise UserError(
            "a network of PyTorch is traced by torchax, which is not installed: pip "
            "install 'kdjax[torch]'"
        )
    with private_names.torch_answers_for_dropped_overloads():
        from torchax import tensor

        class Environment(tensor.Environment):
            """Torchax's, which draws all random numbers from the step's key."""

            def get_and_rotate_prng_key(self, generator: Any = None) -> jax.Array:
                return self.param.get_and_rotate_prng_key()

            def dispatch(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
                options = dict(kwargs or {})
                if options.get("generator") is not None:
                    raise NotTracedError(GENERATOR)
                if func is torch.Tensor.to and any(
                    map(_is_cuda, (*args[1:], *options.values()))
                ):
                    raise NotTracedError(CUDA)
                if func in tensor.TENSOR_CONSTRUCTORS and not options.get("device"):
                    # Where images are: torchax would leave it on PyTorch's CPU.
                    options["device"] = _DEVICE
                with warnings.catch_warnings():
                    # Of 64 bits that are not there: as everywhere in JAX, 32 will do.
                    warnings.filterwarnings("ignore", "Explicitly requested dtype")
                    return super().dispatch(func, types, args, options)

        # Keys that are made while something is traced would be part of its program.
        with jax.ensure_compile_time_eval():
            env = Environment()
    operations.install(env, torch)
    return env


def _is_cuda(value: Any) -> bool:
    """Returns whether an argument is a CUDA device, by name or as an object."""
    kind = value if isinstance(value, str) else getattr(value, "type", "")
    return isinstance(kind, str) and kind.startswith("cuda")


@contextlib.contextmanager
def mode(module: "torch.nn.Module", train: bool) -> Iterator[None]:
    """Runs a module in training or evaluation mode; its parts' own modes come back."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(train)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def recording(
    module: "torch.nn.Module", env: Any, is_tensor: Callable[[Any], bool]
) -> Iterator[None]:
    """Records what the parts of a module return, where somebody asks for it.

    Args:
        module: PyTorch's.
        env: torchax's environment.
        is_tensor: `torch.is_tensor`.
    """
    captured = capture.current()
    if captured is None:
        yield
        return
    last = getattr(module, "output_fmt", "") == "NHWC"  # of timm's
    extra = getattr(module, "num_prefix_tokens", None)

    def hook(path: str, part: Any, args: Any, output: Any) -> None:
        if not captured.sees((path,)):
            return
        value = output
        if is_tensor(output):
            value = functional.as_level(env.t2j_iso(output), last, extra)
        captured.add((path,), value)

    handles = [
        part.register_forward_hook(functools.partial(hook, path))
        for path, part in module.named_modules()
        if path
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
