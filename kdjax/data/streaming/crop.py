"""Random resized crops of encoded photographs, on the host: ImageNet's augmentation.

A crop is a pure function of (stream seed, epoch, index) and the file.
"""

import dataclasses
import io
import math
from typing import ClassVar

import numpy as np
from PIL import Image

from kdjax.data import pixels
from kdjax.runtime.errors import UserError

_ATTEMPTS = 10
_DRAWS = 3 + 2 * _ATTEMPTS  # left, top and flip; area and ratio of each attempt
_DOMAIN = 0x6B646A6178  # 'kdjax': other uses of the seed have other numbers
_EVALUATION = 256 / 224  # shorter side of the resized image over the side of the crop


@dataclasses.dataclass(frozen=True)
class Crop:
    """Random crops of training images, scaled and mirrored.

    Attributes:
        area: smallest and largest part of the image's area.
        ratio: smallest and largest width over height.
        flip: whether half of the crops are mirrored.
        random: False: the centre crop, as in evaluation.

    Reference: C. Szegedy et al., "Going Deeper with Convolutions", 2015 (the crop with
    8 % to 100 % of the area); ten attempts and the central fallback are torchvision's.

    **Deviations**: pixels just outside the crop take part in the interpolation at its
    border, where torchvision crops first; and a crop of at least twice the output size
    is decoded at a half, a quarter or an eighth of the resolution.
    """

    VERSION: ClassVar[int] = 1
    DRAWS: ClassVar[int] = _DRAWS
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    random: bool = True

    def __post_init__(self) -> None:
        for name in ("area", "ratio"):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] < math.inf:
                raise UserError(
                    f"crop {name}={value!r} must be two positive numbers, the smaller "
                    "one first"
                )
        if self.area[1] > 1:
            raise UserError(f"crop area={self.area!r} must not exceed the image's: 1")

    @property
    def varies(self) -> bool:
        """Whether images differ from epoch to epoch."""
        return self.random

    def box(
        self, width: int, height: int, uniform: np.ndarray
    ) -> tuple[int, int, int, int]:
        """Returns left, top, width and height of a crop.

        Args:
            width: of the image.
            height: of the image.
            uniform: from `sample_uniform`.
        """
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area, shape in uniform[3:].reshape(_ATTEMPTS, 2):
            area = self.area[0] + area * (self.area[1] - self.area[0])
            # Uniform in the logarithm: tall crops are as likely as wide ones.
            ratio = math.exp(low + shape * (high - low))
            w = round(math.sqrt(area * width * height * ratio))
            h = round(math.sqrt(area * width * height / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(uniform[0] * (width - w + 1))
                top = int(uniform[1] * (height - h + 1))
                return left, top, w, h
        # The largest central part with a permitted ratio.
        w = max(1, min(width, round(height * self.ratio[1])))
        h = max(1, min(height, round(width / self.ratio[0])))
        return (width - w) // 2, (height - h) // 2, w, h

    def training(self, content: bytes, size: int, uniform: np.ndarray) -> np.ndarray:
        """Returns an image decoded and augmented for training.

        Args:
            content: an encoded image, such as a JPEG file.
            size: height and width of the result.
            uniform: from `sample_uniform`.

        Returns:
            uint8 `[size, size, 3]`.
        """
        if not self.random:
            return evaluation(content, size)
        with Image.open(io.BytesIO(content)) as image:
            pixels.check_large(image)
            array = np.asarray(self.cut(image, size, uniform))
        return array[:, ::-1] if self.flip and uniform[2] < 0.5 else array

    def cut(
        self, image: Image.Image, size: int, uniform: np.ndarray, mode: str = "RGB"
    ) -> Image.Image:
        """Returns a random part of an image, scaled, but not mirrored.

        Args:
            image: opened; a JPEG's pixels may not be loaded yet.
            size: height and width of the result.
            uniform: from `sample_uniform`.
            mode: PIL's, of the result.
        """
        width = image.width
        left, top, w, h = self.box(*image.size, uniform)
        reduced = _decode_reduced(image, min(w, h) // size)
        scale = reduced / width
        # The box in the reduced image's pixels; rounding must not put a corner
        # outside of it.
        box = (
            left * scale,
            top * scale,
            min((left + w) * scale, image.width),
            min((top + h) * scale, image.height),
        )
        return image.convert(mode).resize(
            (size, size), Image.Resampling.BILINEAR, box=box
        )


def sample_uniform(
    seed: int, epoch: int, index: int, count: int = _DRAWS
) -> np.ndarray:
    """Returns the random numbers in [0, 1) for the crop of one example.

    Raw bits of a counter-based generator: NumPy promises them for every version.

    Args:
        seed: of the stream, from 0 to 2**64 - 1.
        epoch: counted from 0.
        index: the example's position in the training set.
        count: how many numbers; the first ones do not depend on it.
    """
    key = np.array([seed, _DOMAIN], np.uint64)
    # Philox increments the first word for every block of numbers; the others are free.
    counter = np.array([0, index, epoch, 0], np.uint64)
    bits = np.random.Philox(key=key, counter=counter).random_raw(count)
    # The upper 53 bits, as many as a float64 holds: never rounded up to 1.
    return (bits >> np.uint64(11)) * 2.0**-53


def evaluation(content: bytes, size: int) -> np.ndarray:
    """Returns an image decoded for evaluation: the centre of the scaled image.

    The shorter side becomes 256 for a centre crop of 224, and in proportion.

    Args:
        content: an encoded image, such as a JPEG file.
        size: height and width of the result.

    Returns:
        uint8 `[size, size, 3]`.
    """
    short = round(size * _EVALUATION)
    with Image.open(io.BytesIO(content)) as image:
        pixels.check_large(image)
        least = min(image.size)
        width, height = (short * side // least for side in image.size)
        scaled = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(scaled)[top : top + size, left : left + size]


def _decode_reduced(image: Image.Image, factor: int) -> float:
    """Makes a JPEG decode at 1, 1/2, 1/4 or 1/8 of its size, at most `factor` smaller.

    Returns:
        The width of the image's content in the reduced pixels, of which it may fill the
        last one in part.
    """
    # A power of two up to 8: the reductions that JPEG decoders offer.
    factor = 1 << (min(max(factor, 1), 8).bit_length() - 1)
    if factor == 1:
        return image.width
    # PIL takes the largest such reduction that leaves at least this size.
    drafted = image.draft("RGB", (image.width // factor, image.height // factor))
    return drafted[1][2] if drafted else image.width
