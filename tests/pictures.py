"""Photographs for the tests of streamed data, some of them broken."""

import io

import numpy as np
from PIL import Image

from benchmarks import photos

SIZE = 32
TRAIN, TEST = 26, 9
BROKEN = {"train": ("t07", "t15"), "validation": ("v4",)}


def slope(width, height):
    """Smooth colours, which JPEG and scaling hardly change."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / width, 255 * y / height
    blue = 60 + 100 * np.sin(np.pi * x / width) * np.cos(np.pi * y / height)
    return np.stack([red, green, blue], axis=-1).round().clip(0, 255).astype(np.uint8)


def jpeg(pixels, mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def decoded(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


def files(split):
    """Photographs of many sizes; one is grey, one CMYK, some are broken."""
    count = {"train": TRAIN, "validation": TEST}[split]
    for i in range(count):
        name = f"t{i:02d}" if split == "train" else f"v{i}"
        pixels = np.roll(slope(40 + 3 * i, 90 - 2 * i), 5 * i, axis=(0, 1))
        content = jpeg(pixels, {3: "L", 5: "CMYK"}.get(i, "RGB"))
        if name in BROKEN[split]:
            content = content[:200] if name == "t15" else content[: len(content) // 2]
        yield photos.File(name, content, i % 4)
