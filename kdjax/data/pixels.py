"""Converts images of any kind to a network's input: upright, grey or RGB, one size."""

import io
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from kdjax.data.limits import MOST_PIXELS
from kdjax.runtime.errors import UserError

# Images with too many pixels are refused with a message of our own.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

VERSION = 1
"""Raised when the same file would be converted to other pixels."""

SMALLEST = 8  # pixels of a side; smaller images are useless for networks

_PLAIN = (".bmp", ".gif", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga")
_PHOTOS = (".jfif", ".jpe", ".jpeg", ".jpg", ".tif", ".tiff", ".webp")
SUFFIXES = frozenset((*_PLAIN, *_PHOTOS))
"""The endings, in lower case, by which images in a folder are recognised."""

_ORIENTATION = 0x0112  # the tag of EXIF
_MODES = {1: "L", 3: "RGB"}
_GREY = ("1", "L", "LA", "La", "I", "F")


def is_grey(image: Image.Image) -> bool:
    """Returns whether an image is stored without colours."""
    return image.mode in _GREY or image.mode.startswith("I;16")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns height and width as a viewer shows them, without decoding pixels."""
    width, height = image.size
    # A PNG may have this tag after the pixels: PIL would decode them all to read it.
    if image.format == "PNG" and "exif" not in image.info:
        return height, width
    turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def is_turned(image: Image.Image) -> bool:
    """Returns whether a viewer rotates or mirrors an image."""
    return image.getexif().get(_ORIENTATION, 1) != 1


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Returns an image upright, as 'L' or 'RGB'.

    Transparent parts become white, 16 bits become their upper 8, and of an animation
    the first picture is used. Embedded colour profiles are not applied.

    Args:
        image: of any mode of PIL.
        channels: 1 or 3.

    Raises:
        ValueError: pixels are fractions or have more than 16 bits.
    """
    image.load()  # of some formats mode and size are known only then
    if is_turned(image):  # the others PIL would copy
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are fractions (float32)")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image)
        if wide.size and not 0 <= int(wide.min()) <= int(wide.max()) < 2**16:
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, layer)
    mode = _MODES[channels]
    return image if image.mode == mode else image.convert(mode)


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Returns the middle of an image that was scaled to just cover a size.

    For a square this scales the shorter side to it. An image of that size is returned
    as it is, and shrinking averages over the pixels (PIL's bilinear filter).
    """
    scale = max(height / image.height, width / image.width)
    scaled = (
        max(width, round(image.width * scale)),
        max(height, round(image.height * scale)),
    )
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    if scaled == (width, height):
        return image
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_array(image: Image.Image) -> np.ndarray:
    """Returns uint8 `[H, W, 1]` of an 'L' image, `[H, W, 3]` of an 'RGB' one."""
    array = np.asarray(image)
    return array[..., np.newaxis] if array.ndim == 2 else array


def view(
    source: bytes | str | os.PathLike[str], shape: tuple[int, int, int]
) -> np.ndarray:
    """Returns an encoded image decoded for evaluation.

    Args:
        source: an image file's content or path.
        shape: height, width and channels of the result.

    Raises:
        ValueError: it is too small or too large, or its pixels are not colours.
        OSError: it is not an image, or damaged; PIL raises further errors.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as one:
        return _view(one, shape)


def _view(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    check_size(image)
    return to_array(cover(convert(image, shape[2]), *shape[:2]))


def check_size(image: Image.Image) -> None:
    """Raises ValueError if an image is too small or too large."""
    if min(image.size) < SMALLEST:
        raise ValueError(
            f"it is {image.width}x{image.height} pixels; the least is "
            f"{SMALLEST}x{SMALLEST}"
        )
    check_large(image)


def check_large(image: Image.Image) -> None:
    """Raises ValueError if an image's header states too many pixels to decode it."""
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"it is {image.width}x{image.height} pixels; the most is {MOST_PIXELS:,} "
            "in all"
        )


def check_array(images: Any, what: str) -> np.ndarray:
    """Returns images as uint8 `[N, H, W, C]`, C being 1 or 3.

    Args:
        images: uint8 `[N, H, W]` or `[N, H, W, C]`.
        what: their name in messages.

    Raises:
        UserError: the dtype or shape is invalid, or the images are too small.
    """
    try:
        images = np.asarray(images)
    except ValueError as error:
        raise UserError(
            f"{what} are of several shapes; give one uint8 array, or a folder"
        ) from error
    if images.dtype.kind == "f":
        line = f"{what} are {images.dtype} pixels"
        finite = np.isfinite(images)
        if not finite.all():
            bad = int(np.argwhere(~finite)[0][0])
            raise UserError(
                f"{line}, and image {bad} holds {images[~finite][0]}; give uint8 pixels"
            )
        span = f", from {images.min():g} to {images.max():g}" if images.size else ""
        raise UserError(
            f"{line}{span}; give uint8 from 0 to 255 (for 0 to 1: "
            "(images * 255).round().astype('uint8'))"
        )
    if images.dtype != np.uint8:
        raise UserError(f"{what} are of dtype {images.dtype}; give uint8 pixels")
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[3] not in _MODES:
        raise UserError(
            f"{what} have the shape {images.shape}; choices: [N, H, W], [N, H, W, 1], "
            "[N, H, W, 3]"
        )
    if min(images.shape[1:3]) < SMALLEST:
        raise UserError(
            f"{what} are {images.shape[2]}x{images.shape[1]} pixels; the least is "
            f"{SMALLEST}x{SMALLEST}"
        )
    return images


def fit(images: Any, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Returns images as a network's input, converted as test images are.

    Args:
        images: uint8 `[N, H, W]` or `[N, H, W, C]`; or a sequence whose items are PIL
            images, paths of image files, or uint8 arrays `[H, W]` or `[H, W, C]`.
        image_shape: height, width and channels of the result.

    Returns:
        uint8 `[N, height, width, channels]`: scaled to just cover the size, centre
        cropped, and converted to grey or RGB.

    Raises:
        UserError: a file cannot be read, or pixels are of another kind.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    if isinstance(images, Sequence):
        rows = [
            fit_one(item, number, image_shape) for number, item in enumerate(images)
        ]
        return np.stack(rows) if rows else np.zeros((0, *image_shape), np.uint8)
    arrays = check_array(images, "images")
    if arrays.shape[1:] == image_shape:
        return arrays
    fitted = np.empty((len(arrays), *image_shape), np.uint8)
    for row, array in zip(fitted, arrays, strict=True):
        row[:] = _view(_image(array), image_shape)
    return fitted


def fit_one(item: Any, number: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns one image as a network's input: a row of `fit`.

    Args:
        item: a PIL image, path, or uint8 array `[H, W]` or `[H, W, C]`.
        number: its position, which messages name if it has no path.
        shape: height, width and channels of the result.

    Raises:
        UserError: it cannot be read, or its pixels are of another kind.
    """
    if isinstance(item, Image.Image):
        try:
            return _view(item, shape)
        except Exception as error:  # PIL raises many kinds of errors for damaged files
            raise UserError(f"image {number}: {reason(error)}") from error
    if isinstance(item, str | os.PathLike):
        try:
            return view(item, shape)
        except Exception as error:
            # The system's text, which would name the path again, without the path.
            text = isinstance(error, OSError) and error.strerror
            raise UserError(
                f"{os.fspath(item)} cannot be read: {text or reason(error)}"
            ) from error
    return fit(check_array(np.asarray(item)[np.newaxis], f"image {number}"), shape)[0]


def _image(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def reason(error: Exception) -> str:
    """Returns one line on why an image cannot be read."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    # PIL's text names the object that it was given, which does not help.
    return re.sub(r" ?<_io\.BytesIO object at 0x[0-9a-f]+>", "", line)
