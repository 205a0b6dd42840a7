"""A stand-in for ImageNet: JPEG files in the array_record form that TFDS gives it.

The photographs are random cuts of the two that come with scikit-learn, so decoding
costs what it costs for real ones of that size; their classes mean nothing.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_sample_images
from tensorflow_datasets.core import registered

from kdjax.data import tfds_files


class File(NamedTuple):
    """A published file: its name, its bytes and its class."""

    name: str
    content: bytes
    label: int


def write(data_dir: Path, splits: Mapping[str, Iterable[File]]) -> Path:
    """Writes imagenet2012 with these files and returns its folder."""
    with registered.skip_registration():

        class Imagenet2012(tfds.core.GeneratorBasedBuilder):
            """TFDS's own needs TensorFlow; the features are the same."""

            VERSION = tfds.core.Version("5.1.0")

            def _info(self) -> tfds.core.DatasetInfo:
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(
                        {
                            "image": tfds.features.Image(encoding_format="jpeg"),
                            "label": tfds.features.ClassLabel(num_classes=1000),
                            "file_name": tfds.features.Text(),
                        }
                    ),
                )

            def _split_generators(self, manager: Any) -> dict[str, Iterator[Any]]:
                return {
                    split: self._generate_examples(files)
                    for split, files in splits.items()
                }

            def _generate_examples(
                self, files: Iterable[File]
            ) -> Iterator[tuple[str, dict[str, Any]]]:
                for name, content, label in files:
                    image = io.BytesIO(content)
                    yield name, {"image": image, "label": label, "file_name": name}

    with tfds_files.quiet_tfds():
        tfds.disable_progress_bar()
        builder = Imagenet2012(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    return Path(builder.data_path)


def photographs(count: int, seed: int = 0) -> Iterator[File]:
    """Yields JPEG files of some 500 x 375 pixels, most of them wider than high."""
    sources = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(seed)
    for i in range(count):
        photo = sources[rng.integers(len(sources))]
        width, height = (500, 375) if rng.random() < 0.75 else (375, 500)
        part = rng.uniform(0.6, 1.0) * min(photo.width / width, photo.height / height)
        w, h = int(part * width), int(part * height)
        left = int(rng.integers(photo.width - w + 1))
        top = int(rng.integers(photo.height - h + 1))
        cut = photo.resize(
            (width, height),
            Image.Resampling.BICUBIC,
            box=(left, top, left + w, top + h),
        )
        buffer = io.BytesIO()
        cut.save(buffer, "JPEG", quality=95)
        yield File(f"photo_{i:06d}.JPEG", buffer.getvalue(), int(rng.integers(1000)))
