"""Tiny ImageNet, which TFDS lacks, from the published zip file."""

import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from kdjax.data import limits
from kdjax.data.builders.archive import FromArchive, reading

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_ROOT = "tiny-imagenet-200/"


class TinyImagenet(FromArchive, tfds.core.GeneratorBasedBuilder):
    """Tiny ImageNet: 100,000 and 10,000 images of 64x64 pixels in 200 classes.

    Images are the published JPEG files, byte for byte; classes are WordNet ids in the
    order of wnids.txt. The published test images have no labels and are left out.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="200 ImageNet classes of 500 training and 50 validation images "
            "each, scaled down to 64x64 pixels.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(
                        shape=(64, 64, 3), encoding_format="jpeg"
                    ),
                    "label": tfds.features.ClassLabel(num_classes=200),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
        )

    def _split_generators(
        self, manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[Any]]:
        path = self.fetch(manager, _URL)
        with reading(path), zipfile.ZipFile(path) as archive:
            self.info.features["label"].names = (
                limits.read_member(archive, f"{_ROOT}wnids.txt").decode().split()
            )
            annotations = limits.read_member(
                archive, f"{_ROOT}val/val_annotations.txt"
            ).decode()
            # A line: file name, class and the corners of a box.
            validation = {
                f"{_ROOT}val/images/{line.split()[0]}": line.split()[1]
                for line in annotations.splitlines()
            }
            # Such as tiny-imagenet-200/train/n01443537/images/n01443537_0.JPEG.
            train = {
                name: name.split("/")[2]
                for name in archive.namelist()
                if name.startswith(f"{_ROOT}train/") and name.endswith(".JPEG")
            }
        return {
            "train": self._generate_examples(path, train),
            "validation": self._generate_examples(path, validation),
        }

    def _generate_examples(
        self, path: pathlib.Path, labels: dict[str, str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        with zipfile.ZipFile(path) as archive:
            for name, label in labels.items():
                with reading(path):
                    content = limits.read_member(archive, name)
                key = name.rsplit("/", 1)[-1]
                yield key, {"id": key, "image": content, "label": label}
