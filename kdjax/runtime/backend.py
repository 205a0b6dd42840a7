"""Everything that differs by backend, with the measurement behind every choice."""

import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.runtime.files import cache_folder

Options = dict[str, str | bool]
"""XLA's options, as JAX takes them."""

COMMAND_BUFFERS = "xla_gpu_enable_command_buffer"
"""XLA's option that tells which operations become part of CUDA graphs."""

CAPTURED = (
    "FUSION",
    "CUBLAS",
    "CUBLASLT",
    "CUDNN",
    "CUSTOM_CALL",
    "DYNAMIC_SLICE_FUSION",
    "CONDITIONAL",
    "CONVOLUTION",
)
"""XLA's default in jaxlib 0.10.2, and convolutions: the option takes the whole list."""

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "target", default=None
)


def platform() -> str:
    """Returns the platform that programs are compiled for: 'cpu', 'gpu' or 'tpu'."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Compiles for another platform than the one that this process runs on."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second start does not compile again.

    JAX's own settings (JAX_COMPILATION_CACHE_DIR and so on) take precedence.
    """
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        folder = cache_folder() / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Also the many small programs: a cached start of CTKD takes 9.0 s instead of 10.0.
    shortest = "jax_persistent_cache_min_compile_time_secs"
    if shortest.upper() not in os.environ:
        jax.config.update(shortest, 0.0)


def compiler_options() -> Options:
    """Returns XLA's options for train and evaluation steps.

    On CPU the library's fast reductions, but XLA's own convolutions: a supervised step
    of WRN-16-1 (batch 128, two cores) takes 272 ms instead of 400, a CTKD step
    1,085 ms instead of 1,493.

    On GPU convolutions, too, become part of command buffers (CUDA graphs), so that a
    step has few launches: on an H100 in bf16 a supervised step of WRN-16-1 takes
    1.17 ms instead of 1.25. The user's own choice in XLA_FLAGS takes precedence. Since
    cuDNN cannot be started while a command buffer is captured, it is started here.
    """
    if platform() == "cpu":
        option = "xla_cpu_experimental_ynn_fusion_type"
        return _accepted({option: "LIBRARY_FUSION_TYPE_REDUCE"}, platform())
    if platform() != "gpu":
        return {}
    if jax.default_backend() == "gpu":
        _start_cudnn()
    if COMMAND_BUFFERS in os.environ.get("XLA_FLAGS", ""):
        return {}
    return _accepted({COMMAND_BUFFERS: ",".join(CAPTURED)}, platform())


@functools.cache
def _start_cudnn() -> None:
    """Runs a small convolution on every device of this process, once.

    A program from the compilation cache has not tuned its convolutions in this process.
    If the first of them is in a command buffer, cuDNN allocates while it is captured,
    which CUDA forbids: 'Failed to trace command buffer: INTERNAL: No DNN support for
    stream'.
    """
    shapes = (1, 8, 8, 8), (3, 3, 8, 8)
    for device in jax.local_devices():
        arrays = (jax.device_put(jnp.ones(shape), device) for shape in shapes)
        # Without any command buffer, whatever the user's flags are.
        convolve = jax.jit(
            lambda images, kernel: jax.lax.conv_general_dilated(
                images,
                kernel,
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ),
            compiler_options={COMMAND_BUFFERS: ""},
        )
        convolve(*arrays).block_until_ready()


def start_options() -> Options:
    """Returns XLA's options for programs that run once, such as initial parameters.

    On CPU without optimisation: WRN-40-1's start compiles in 4.6 s instead of 13.
    """
    if jax.default_backend() != "cpu":
        return {}
    return _accepted({"xla_backend_optimization_level": "0"}, "cpu")


def _accepted(options: Options, platform: str) -> Options:
    """Returns the options that the compiler accepts; the others only affect speed.

    Options differ between versions of jaxlib. For a platform that this process does not
    run on, all are returned: they cannot be tried here, and preflight must compile what
    a run would compile, or show the compiler's own error.
    """
    if platform != jax.default_backend():
        return dict(options)
    return {
        name: value
        for name, value in options.items()
        if _is_accepted(platform, name, value)
    }


@functools.cache
def _is_accepted(platform: str, name: str, value: str | bool) -> bool:
    """Tries an option, once in a process; prints a line if the compiler refuses it.

    The trial program is the identity on one device of this process: the other processes
    of a run take no part in it.
    """
    program = jax.jit(lambda x: x).lower(jax.ShapeDtypeStruct((), jnp.float32))
    try:
        program.compile({name: value})
    except jax.errors.JaxRuntimeError as error:
        from kdjax.runtime.console import console  # here: seldom needed

        reason = str(error).partition("\n")[0]
        console.print(
            f"left out: XLA's option {name}={value}, which the compiler for {platform} "
            f"refuses ({reason})",
            markup=False,
        )
        return False
    return True


def steps_per_dispatch() -> int:
    """Returns the largest number of train steps per call of the compiled program.

    On CPU one: convolutions' weight gradients inside a loop take a path 20 times
    slower (9,800 ms a step instead of 400). Elsewhere a loop on the device saves the
    host's work between steps: on an H100 a supervised step of WRN-16-1 takes 1.72 ms
    instead of 2.19. Forty cut CIFAR's epochs of 390 steps into ten dispatches of 39.
    """
    return 1 if platform() == "cpu" else 40


def loop(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, count: int
) -> tuple[Any, Any]:
    """Returns the result of `jax.lax.scan` over 0, 1, ..., count - 1.

    Unrolled on CPU, for the reason in `steps_per_dispatch`.
    """
    if platform() != "cpu":
        return jax.lax.scan(body, carry, jnp.arange(count))
    results = []
    for number in range(count):
        carry, result = body(carry, number)
        results.append(result)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def own_batch_norm_gradient() -> bool:
    """Returns whether BatchNorm's gradient is hand-written, or autodiff's.

    Hand-written on CPU, where every sum over a map is a separate pass. On GPU it has
    two sums over the maps where autodiff's has three: compiled for an H100, a bf16 step
    of WRN-16-1 has 245 kernels instead of 279. Run with a launch from the host after
    every step, both took the same time (1.70 and 1.72 ms a supervised step, 7.0 and 7.3
    one of CTKD). On TPU it was not measured.
    """
    return platform() in ("cpu", "gpu")


def joint_sums() -> bool:
    """Returns whether BatchNorm's two sums over a map are one operation, or two.

    On GPU a large sum takes two kernels. Two sums of one map share the first of these,
    but only as one operation the second as well: compiled for an H100, a bf16 step of
    WRN-16-1 has 223 kernels instead of 245 (not timed). On CPU the library's fast
    sums have one result each.
    """
    return platform() == "gpu"


def stack_teachers() -> bool:
    """Returns whether equal teachers of one step run as one vmapped call, or a loop.

    Vmapped convolutions become grouped ones. On an H100 a DGKD step of WRN-16-1 with
    four WRN-40-1 takes 5.2 ms in turn and 4.3 vmapped (batch 128). On CPU the four take
    676 ms in turn and 4,641 vmapped (two cores); compiled for TPU, vmap moves 1.3 times
    the bytes.
    """
    return platform() == "gpu"


def unroll_groups() -> bool:
    """Returns whether grouped convolutions are written as ordinary operations.

    On CPU, XLA's grouped convolutions are naive loops: values and gradients of a
    depthwise 3x3 convolution of 32 maps of 16x16x72 take 2,600 ms instead of 18, those
    of a 1x1 convolution of 480 to 120 channels in three groups 590 ms instead of 8 (two
    busy cores). On an H100 a supervised step of MobileNetV2 (0.5, images of 32x32,
    batch 128) takes 4.0 ms instead of 5.0; networks with groups of several channels
    were not measured there.
    """
    return platform() in ("cpu", "gpu")
