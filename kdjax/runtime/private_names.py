"""What kdjax uses of other libraries beyond their public interfaces.

Each function names the library, the versions that have the name or text, and what
happens without it: at worst a slower end or a less clear message. A library is imported
by the functions that need it, so that importing this module imports none.
"""

import contextlib
import importlib
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from typing import Any

_LOST_PEER = re.compile(
    r"gloo|nccl|coordination service|coordinationservice|heartbeat"
    r"|connection (closed|reset) by peer|socket closed",
    re.IGNORECASE,
)
_NEEDED_MEMORY = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
NO_TPU_METADATA = "TPU_SKIP_MDS_QUERY"
"""The variable that keeps libtpu 0.0.52 from asking a metadata server about TPUs."""


def is_about_a_lost_peer(message: str) -> bool:
    """Returns whether an error's text means that another process is gone.

    jaxlib 0.10.2 and 0.12.0: XLA, Gloo and NCCL have no class of errors for it. If the
    text changes, the run ends with a traceback instead of one line.
    """
    return bool(_LOST_PEER.search(message))


def needed_memory(message: str) -> float | None:
    """Returns the bytes that a program needs, from the refusal of XLA's TPU compiler.

    libtpu 0.0.52: only this text has figures of a program that does not fit. If the
    text changes (None), the compiler's own line is shown.
    """
    used = _NEEDED_MEMORY.search(message)
    return float(used[1]) * _UNITS[used[2]] if used else None


def jax_met_no_tpu(environment: Mapping[str, str]) -> bool:
    """Returns whether JAX looked for TPU chips in this process and there were none.

    jax 0.10.2 and 0.12.0 then set this variable while they are imported. Without it a
    machine that has libtpu but no TPU waits for a metadata server that does not answer.
    """
    return NO_TPU_METADATA in environment


def missing_backend(error: BaseException) -> str | None:
    """Returns the line for a backend that JAX cannot start, or None for other errors.

    jax 0.10.2 and 0.12.0 raise a plain RuntimeError if JAX_PLATFORMS names an unknown
    platform, and fail an assertion if the plugin of a GPU is not installed. If the
    module changes its name (None), JAX's error is shown.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or frames[-1].f_globals.get("__name__") != "jax._src.xla_bridge":
        return None
    wanted = os.environ.get("JAX_PLATFORMS", "")
    reason = str(error).partition(" (")[0] or "there is no such backend here"
    return (
        f"JAX cannot start on JAX_PLATFORMS={wanted!r}: {reason}; choices: cpu, or "
        "what the installed jax has a plugin and devices for"
    )


def is_about_a_dead_worker(error: RuntimeError) -> bool:
    """Returns whether an error of Grain means that a worker process has died.

    grain 0.2.18 raises a plain RuntimeError, as it does for other reasons. If the text
    changes, Grain's error is shown.
    """
    return "terminated unexpectedly" in str(error)


def free_memory_of_ended_workers() -> None:
    """Waits until Grain has released the memory that it shared with workers.

    grain 0.2.18: a thread of Grain does so with some delay. Without the thread's name
    there is no wait, and Python may warn of shared memory when the program ends.
    """
    module = sys.modules.get("grain._src.python.ipc.shared_memory_array")
    arrays = getattr(module, "SharedMemoryArray", None)
    if (threads := getattr(arrays, "_del_thread_pool", None)) is not None:
        with contextlib.suppress(ValueError):  # it has ended
            threads.apply(int)  # waits: the pool runs its earlier tasks first


def tfds_sorts_in_memory(limit: int) -> contextlib.AbstractContextManager[None]:
    """Lets TFDS sort up to `limit` bytes in memory: on disk it needs TensorFlow.

    tensorflow-datasets 4.9.10: above 1 GB it sorts on disk. Without the name a larger
    data set needs TensorFlow.
    """
    shuffle = _module("tensorflow_datasets.core.shuffle")
    return _changed(shuffle, "MAX_MEM_BUFFER_SIZE", limit)


def tfds_retries(count: int) -> contextlib.AbstractContextManager[None]:
    """Lets TFDS repeat a failed download up to `count` times.

    tensorflow-datasets 4.9.10: ten times, which takes more than three minutes without a
    network. Without the name there are still ten.
    """
    downloader = _module("tensorflow_datasets.core.download.downloader")
    return _changed(downloader, "MAX_RETRIES", count)


def hugging_face_offline(offline: bool) -> contextlib.AbstractContextManager[None]:
    """Lets Hugging Face's hub answer only with what it has downloaded before.

    huggingface_hub 2.4.0 reads its variable HF_HUB_OFFLINE once, when it is imported.
    Without the name it tries for three quarters of a minute where the network is off.

    Args:
        offline: whether to; False changes nothing.
    """
    if not offline:
        return contextlib.nullcontext()
    return _changed(_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)


def tfds_checksum_errors() -> tuple[type[Exception], ...]:
    """Returns the error class of TFDS for a download with a wrong checksum.

    tensorflow-datasets 4.9.10: the class is in no public module. Without the name (an
    empty tuple) the error of TFDS is shown.
    """
    manager = _module("tensorflow_datasets.core.download.download_manager")
    error = getattr(manager, "NonMatchingChecksumError", None)
    return () if error is None else (error,)


def _module(name: str) -> types.ModuleType | None:
    """Returns a library's module if there still is one of this name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


@contextlib.contextmanager
def _changed(module: types.ModuleType | None, name: str, value: int) -> Iterator[None]:
    """Sets a module's variable for a while, if there is one."""
    if not hasattr(module, name):
        yield
        return
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


def source_line(equation: Any) -> str:
    """Returns the line of Python that an equation of a jaxpr comes from, or ''.

    jax 0.10.2 and 0.12.0. If the name changes, messages name the operation alone.
    """
    module = _module("jax._src.source_info_util")
    summarize = getattr(module, "summarize", None)
    return str(summarize(equation.source_info)) if summarize else ""


@contextlib.contextmanager
def torch_answers_for_dropped_overloads() -> Iterator[None]:
    """Provides overloads that PyTorch has dropped, while torchax is imported.

    torchax 0.0.13 names 22 overloads of named tensors that torch 2.13.0 no longer
    has, and cannot be imported without them. Inside the block such a name returns the
    first overload of its operation. Without the class's name (torch up to 2.12 was not
    tried) or with a torchax that fits, nothing is changed.
    """
    torch = importlib.import_module("torch")
    packet = type(torch.ops.aten.add)
    answer = packet.__getattr__

    def lenient(self: Any, name: str) -> Any:
        try:
            return answer(self, name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return answer(self, self.overloads()[0])

    packet.__getattr__ = lenient
    try:
        yield
    finally:
        packet.__getattr__ = answer


def import_torchvision() -> types.ModuleType:
    """Returns torchvision, even if its compiled operations cannot be loaded.

    torchvision 0.28.0 from PyPI beside torch 2.13.0 built for CPUs alone: its
    operations are missing, and its import describes two of them. They are declared
    here; no classifier uses them.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    torch = importlib.import_module("torch")
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}",
            "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        )
    return importlib.import_module("torchvision")
