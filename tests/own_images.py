"""Folders of small images for the tests of one's own data."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cow")


def pixels(rng, height=20, width=20, channels=3):
    """Smooth random pixels, which a JPEG keeps nearly."""
    shape = (4, 4) if channels == 1 else (4, 4, channels)
    small = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(array, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


def write(root: Path, counts, form="png", seed=0, size=None, channels=3) -> Path:
    """Writes class folders; `counts` are of a split by class, or of a class."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        if isinstance(count, dict):
            write(root / name, count, form, seed + 1 + len(name), size, channels)
            continue
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            height, width = size or rng.integers(16, 29, 2)
            Image.fromarray(pixels(rng, height, width, channels)).save(
                root / name / f"{i:03d}.{form}"
            )
    return root


def splits(train=8, test=3):
    """The counts of a folder with train/ and test/."""
    return {
        "train": dict.fromkeys(CLASSES, train),
        "test": dict.fromkeys(CLASSES, test),
    }
