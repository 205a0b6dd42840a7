"""Reads files of tensors; nothing else in them is unpickled or run."""

import dataclasses
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.files import expand

TORCH = (".pth", ".pt", ".th", ".bin", ".tar", ".pkl", ".ckpt")
SUFFIXES = (*TORCH, ".safetensors")

# Keys under which training scripts store the state dict, beside epoch and optimizer.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "teacher")
# Prefixes of wrappers: DataParallel, torch.compile, and modules around the network.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
_COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class StateDict:
    """The tensors of a file, without their wrapping.

    Attributes:
        path: of the file.
        format: 'PyTorch' or 'safetensors'.
        wrapping: the nested keys under which the state dict is, from the outermost.
        prefix: the common prefix of its keys, such as 'module.'.
        tensors: by key, without BatchNorm's batch counters.
    """

    path: Path
    format: str
    wrapping: tuple[str, ...]
    prefix: str
    tensors: Mapping[str, np.ndarray]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors, by key."""
        return {key: array.shape for key, array in self.tensors.items()}


def read(path: str | Path) -> StateDict:
    """Reads a state dict.

    Args:
        path: a file of `torch.save`, or a .safetensors file.

    Raises:
        UserError: the file does not exist, is damaged or of another kind, or contains
            more than tensors; or the library that reads it is not installed.
    """
    path = expand(path)
    if path.suffix not in SUFFIXES:
        raise unknown(f"kind of file {path}:", path.suffix, SUFFIXES)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    if path.suffix == ".safetensors":
        format, content = "safetensors", _read_safetensors(path)
    else:
        format, content = "PyTorch", _read_torch(path)
    wrapping, found = _unwrap(content)
    if not found:
        holds = (
            ", ".join(map(repr, list(content)[:5]))
            if _is_dict(content)
            else (f"a {type(content).__name__}")
        )
        raise UserError(f"{path} has no named tensors: it holds {holds}")
    prefix, tensors = _without_prefix(found)
    arrays = {
        key: _array(path, key, tensor)
        for key, tensor in tensors.items()
        if not key.endswith(_COUNTER)
    }
    return StateDict(path, format, wrapping, prefix, arrays)


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise _not_installed("safetensors", path) from None
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a complete .safetensors file: {error}"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise _not_installed("torch", path) from None
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # any error that a damaged file causes in the reader
        text = str(error).strip().splitlines() or [type(error).__name__]
        if "TorchScript" in str(error):
            text = ["it is a TorchScript program; save its `state_dict()` instead"]
        raise UserError(
            f"{path} is not a complete file of torch.save: {text[0]}"
        ) from error


def _harmless() -> list[Any]:
    """Returns the classes besides tensors that the reader may construct.

    Training scripts save NumPy scalars and argparse options beside the weights.
    Constructing them runs no code from the file.
    """
    import argparse

    numbers = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        np.dtype,
        *(type(np.dtype(number)) for number in numbers),
        # NumPy 2 and 1 name its module differently.
        (scalar, "numpy._core.multiarray.scalar"),
        (scalar, "numpy.core.multiarray.scalar"),
    ]


def _refused(path: Path, message: str) -> UserError:
    """Returns the error for a pickle that PyTorch's `weights_only` reader refuses."""
    if named := re.search(r"GLOBAL ([\w.]+)", message):
        return UserError(
            f"{path} holds more than tensors (it names {named[1]}), and nothing else "
            "is read from a file: save `model.state_dict()` by torch.save"
        )
    reason = re.search(r"WeightsUnpickler error: (.*)", message)
    text = reason[1].strip() if reason else message.splitlines()[0]
    return UserError(f"{path} is not a complete file of torch.save: {text}")


def _not_installed(library: str, path: Path) -> UserError:
    return UserError(f"{library} is needed to read {path}: pip install 'kdjax[torch]'")


def _is_dict(content: Any) -> bool:
    return isinstance(content, Mapping)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _tensors(content: Any) -> dict[str, Any]:
    """Returns the tensors of a mapping whose keys are names."""
    if not _is_dict(content):
        return {}
    return {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and _is_tensor(value)
    }


def _unwrap(content: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Returns the nested keys under which the state dict is, and its tensors.

    Known keys take precedence over tensors beside them, such as an accuracy. Without a
    known key, the state dict is the only part that contains nothing but tensors.
    """
    if not _is_dict(content):
        return (), {}
    inner = {key: part for key, part in content.items() if _is_dict(part)}
    for key in _WRAPPERS:
        if key in inner:
            wrapping, tensors = _unwrap(inner[key])
            if tensors:
                return (key, *wrapping), tensors
    if tensors := _tensors(content):
        return (), tensors
    whole = [
        (key, tensors)
        for key, part in inner.items()
        if (tensors := _tensors(part)) and len(tensors) == len(part)
    ]
    if len(whole) == 1:
        return (whole[0][0],), whole[0][1]
    return (), {}


def _without_prefix(tensors: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the keys' common prefix, and the tensors without it."""
    prefix = ""
    while True:
        for start in _PREFIXES:
            if all(key.startswith(prefix + start) for key in tensors):
                prefix += start
                break
        else:
            return prefix, {key[len(prefix) :]: tensors[key] for key in tensors}


def _array(path: Path, key: str, tensor: Any) -> np.ndarray:
    """Returns a tensor as an array; bfloat16, which NumPy lacks, as float32.

    Raises:
        UserError: the tensor is sparse or quantised, or has values that are not finite.
    """
    if not isinstance(tensor, np.ndarray):
        try:
            tensor = tensor.detach()
            tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"{path}: {key} is not a dense tensor: {str(error).splitlines()[0]}"
            ) from error
    if not np.all(np.isfinite(tensor.astype(np.float32))):
        raise UserError(f"{path}: {key} has values that are not finite")
    return tensor
