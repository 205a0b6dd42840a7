"""The libraries that run exported networks; each is imported when it is needed."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kdjax.predict.description import Description
from kdjax.runtime.errors import UserError

Network = Callable[[np.ndarray], np.ndarray]
"""From uint8 images `[N, H, W, C]` to float32 logits `[N, classes]`; for threads."""


def open_network(description: Description, batch_size: int) -> Network:
    """Returns the function that a network's file holds.

    It takes 1 to `batch_size` images, and may be called by several threads at once;
    each call computes in the thread that makes it where the runtime allows that.

    Args:
        description: of the network.
        batch_size: the greatest number of images of a call.

    Raises:
        UserError: the runtime is not installed, or the file is damaged.
    """
    open_format = {"onnx": _onnx, "stablehlo": _stablehlo}[description.format]
    try:
        return open_format(description, batch_size)
    except UserError:
        raise
    except Exception as error:  # every runtime has its own classes of errors
        raise UserError(
            f"{description.path} cannot be opened: {_first_line(error)}"
        ) from error


def prepare(images: np.ndarray, description: Description) -> np.ndarray:
    """Returns images as a network's file takes them.

    Args:
        images: uint8 `[N, H, W, C]`.
        description: of the network.

    Returns:
        `[N, C, H, W]` or `[N, H, W, C]`: uint8 unchanged, or float32
        `(images / 255 - mean) / std`.
    """
    channels_first = description.layout == "NCHW"
    if description.dtype == "uint8":
        if channels_first:
            images = images.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(images)
    mean = np.asarray(description.mean, np.float32)
    std = np.asarray(description.std, np.float32)
    if channels_first:
        images = images.transpose(0, 3, 1, 2)
        mean, std = mean[:, np.newaxis, np.newaxis], std[:, np.newaxis, np.newaxis]
    # In place: each step as evaluation computes it.
    prepared = images.astype(np.float32, order="C")
    prepared /= np.float32(255)
    prepared -= mean
    prepared /= std
    return prepared


def _onnx(description: Description, batch_size: int) -> Network:
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing(description, "onnxruntime") from error
    options = onnxruntime.SessionOptions()
    # Several calls at once keep the cores busy, without waiting for each other.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; those are raised
    session = onnxruntime.InferenceSession(
        str(description.path), options, providers=["CPUExecutionProvider"]
    )
    _check_onnx(description, session)

    def run(images: np.ndarray) -> np.ndarray:
        inputs = {description.input_name: prepare(images, description)}
        return session.run([description.output_name], inputs)[0]

    return run


def _check_onnx(description: Description, session: Any) -> None:
    """Raises UserError unless a file has the inputs and outputs of its model.json."""
    height, width, channels = description.image_shape
    image = (
        (channels, height, width)
        if description.layout == "NCHW"
        else (height, width, channels)
    )
    dtype = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}[description.dtype]
    _check_ends(
        description,
        {node.name: (node.type, node.shape) for node in session.get_inputs()},
        {description.input_name: (dtype, image)},
    )
    _check_ends(
        description,
        {node.name: (node.type, node.shape) for node in session.get_outputs()},
        {description.output_name: ("tensor(float)", (len(description.classes),))},
    )


def _check_ends(
    description: Description,
    found: Mapping[str, tuple[str, list[Any]]],
    expected: Mapping[str, tuple[str, tuple[int, ...]]],
) -> None:
    for name, (dtype, sizes) in expected.items():
        if name not in found:
            raise UserError(
                f"{description.path} has no {name!r}, which model.json names, but "
                f"{', '.join(found)}"
            )
        dtype_there, shape = found[name]
        if dtype_there != dtype or not _may_be(shape, sizes):
            raise UserError(
                f"{description.path}: {name} is {dtype_there} {shape}; by model.json "
                f"{dtype} {['N', *sizes]}"
            )


def _may_be(shape: list[Any], sizes: tuple[int, ...]) -> bool:
    """Returns whether `shape` is of any number of examples of `sizes`."""
    if len(shape) != 1 + len(sizes) or isinstance(shape[0], int):
        return False
    # Free or unknown sizes are names or None.
    pairs = zip(shape[1:], sizes, strict=True)
    return all(size == there for there, size in pairs if isinstance(there, int))


def _stablehlo(description: Description, batch_size: int) -> Network:
    import jax
    import jax.export

    content = bytearray(description.path.read_bytes())
    try:
        exported = jax.export.deserialize(content)
    except ImportError as error:
        raise _missing(description, "flatbuffers") from error
    call = jax.jit(exported.call)

    def run(images: np.ndarray) -> np.ndarray:
        # Every new number of images would be compiled again.
        filled = np.zeros((batch_size, *images.shape[1:]), np.uint8)
        filled[: len(images)] = images
        return np.asarray(call(prepare(filled, description)))[: len(images)]

    return run


def _missing(description: Description, package: str) -> UserError:
    return UserError(
        f"{description.path} needs {package}, which is not installed: "
        "pip install 'kdjax[export]'"
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
