"""Classifying image files in a plain loop: what `benchmarks.predict` compares with.

    python -m benchmarks.plain_loop MODEL FOLDER

What a user with a little time writes over PIL and onnxruntime as they come, one image
after the other; it imports nothing else, so that its start is a fair one.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

Loop = Callable[[Sequence[str]], Iterator[list[tuple[int, float]]]]


def plain(folder: Path) -> Loop:
    """Returns the loop: number and probability of each file's five best classes."""
    steps = json.loads((folder / "model.json").read_text())["preprocessing"]
    height, width, _ = steps["image_shape"]
    mean, std = np.float32(steps["mean"]), np.float32(steps["std"])
    session = onnxruntime.InferenceSession(folder / "model.onnx")

    def loop(paths: Sequence[str]) -> Iterator[list[tuple[int, float]]]:
        for path in paths:
            image = Image.open(path).convert("RGB")
            if image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
            pixels = (np.asarray(image, np.float32) / 255 - mean) / std
            batch = pixels.transpose(2, 0, 1)[np.newaxis]
            logits = session.run(["logits"], {"images": batch})[0][0]
            weights = np.exp(logits - logits.max())
            shares = weights / weights.sum()
            best = np.argsort(-shares)[:5]
            yield [(int(i), float(shares[i])) for i in best]

    return loop


if __name__ == "__main__":
    files = sorted(map(str, Path(sys.argv[2]).iterdir()))
    for file, found in zip(files, plain(Path(sys.argv[1]))(files), strict=True):
        print(file, found)
