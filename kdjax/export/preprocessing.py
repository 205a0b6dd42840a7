"""The preprocessing from uint8 images to an exported network's input."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preprocessing from images to an exported network's input.

    Attributes:
        mean: of each channel, on the scale 0 to 1.
        std: standard deviation of each channel.
        layout: of the input: 'NCHW' or 'NHWC'.
        inside: whether the file takes uint8 `[N, H, W, C]` and normalises it itself.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str
    inside: bool

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the input for images, uint8 `[N, H, W, C]`."""
        if self.inside:
            return np.ascontiguousarray(images)
        pixels = images.astype(np.float32) / np.float32(255)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        pixels = (pixels - mean) / std
        if self.layout == "NCHW":
            pixels = pixels.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(pixels, np.float32)
