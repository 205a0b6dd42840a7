"""Augmentation on the host, for streamed training images; without JAX.

The options are those of `vary.Vary`, which does the same on the device with other
random numbers. The result is a pure function of (stream seed, epoch, index) and the
file.
"""

import dataclasses
import io
from typing import ClassVar

import numpy as np
from PIL import Image, ImageEnhance

from kdjax.data import pixels
from kdjax.data.streaming.crop import Crop

_FURTHER = 6  # rows and columns of a shift, the angle, three strengths of colours


@dataclasses.dataclass(frozen=True)
class HostVary:
    """The augmentation of streamed training images.

    Attributes:
        crop: see `Vary`, also for the others.
        padding: 'reflect' or 'zero'.
        flip: whether half of the images are mirrored.
        rotate: degrees.
        area: smallest and largest part of the image's area; (): its middle part.
        ratio: smallest and largest width over height of that part.
        jitter: strengths of brightness, contrast and saturation, or ().
        channels: of the images.
    """

    # The first random numbers are those that `Crop` uses.
    DRAWS: ClassVar[int] = Crop.DRAWS + _FURTHER
    crop: int = 0
    padding: str = "reflect"
    flip: bool = False
    rotate: float = 0.0
    area: tuple[float, ...] = ()
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    jitter: tuple[float, ...] = ()
    channels: int = 3

    def training(self, content: bytes, size: int, uniform: np.ndarray) -> np.ndarray:
        """Returns an encoded image decoded and augmented for training.

        Args:
            content: an image file.
            size: height and width of the result.
            uniform: `DRAWS` numbers from `crop.sample_uniform`.

        Returns:
            uint8 `[size, size, channels]`.
        """
        further = uniform[Crop.DRAWS :]
        image = self._cut(content, size, uniform)
        array = self._shift(pixels.to_array(image), further[:2])
        if self.flip and uniform[2] < 0.5:
            array = array[:, ::-1]
        if self.rotate:
            array = self._turn(array, (2 * further[2] - 1) * self.rotate)
        return self._colour(array, further[3:]) if self.jitter else array

    def _cut(self, content: bytes, size: int, uniform: np.ndarray) -> Image.Image:
        with Image.open(io.BytesIO(content)) as opened:
            image: Image.Image = opened
            pixels.check_size(image)
            if not self.area:
                return pixels.cover(pixels.convert(image, self.channels), size, size)
            crop = Crop((self.area[0], self.area[1]), (self.ratio[0], self.ratio[1]))
            mode = "L" if self.channels == 1 else "RGB"
            # A JPEG that is not rotated may be decoded at a part of its resolution.
            if image.mode not in ("L", "RGB") or pixels.is_turned(image):
                image = pixels.convert(image, self.channels)
            return crop.cut(image, size, uniform[: Crop.DRAWS], mode)

    def _shift(self, array: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        if not self.crop:
            return array
        height, width, _ = array.shape
        pad = (self.crop, self.crop), (self.crop, self.crop), (0, 0)
        mode = "symmetric" if self.padding == "reflect" else "constant"
        padded = np.pad(array, pad, mode)  # type: ignore[call-overload]
        top, left = (int(u * (2 * self.crop + 1)) for u in uniform)
        return padded[top : top + height, left : left + width]

    def _turn(self, array: np.ndarray, angle: float) -> np.ndarray:
        from scipy import ndimage  # for this option only

        turned = ndimage.rotate(
            array.astype(np.float32), angle, reshape=False, order=1, mode="reflect"
        )
        return turned.round().clip(0, 255).astype(np.uint8)

    def _colour(self, array: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        image = Image.fromarray(array[..., 0] if self.channels == 1 else array)
        kinds = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
        for kind, strength, number in zip(kinds, self.jitter, uniform, strict=True):
            if strength:
                image = kind(image).enhance(1 + strength * (2 * float(number) - 1))
        return pixels.to_array(image)
