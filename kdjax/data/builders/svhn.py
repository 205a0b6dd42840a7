"""SVHN's cropped digits from the published MATLAB files."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image

from kdjax.data import limits
from kdjax.data.builders.archive import FromArchive, reading

_OfficialSvhn: Any = tfds.builder_cls("svhn_cropped")  # Any: looked up by name
_URL = "http://ufldl.stanford.edu/housenumbers/"


# The official builder of this name is registered already.
class SvhnCropped(FromArchive, _OfficialSvhn, skip_registration=True):  # type: ignore[call-arg]
    """SVHN: 73,257 and 26,032 house-number digits of 32x32 pixels.

    Unlike the official builder this one leaves out the split 'extra', which
    nothing here reads: a download of 1.3 GB.
    """

    def _split_generators(
        self, manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[Any]]:
        return {
            split: self._generate_examples(
                f"{split}_", self.fetch(manager, f"{_URL}{split}_32x32.mat")
            )
            for split in ("train", "test")
        }

    def _generate_examples(
        self, prefix: str, path: pathlib.Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        with reading(path):
            limits.check_mat(path)
            content = scipy.io.loadmat(path)
            images = np.moveaxis(content["X"], -1, 0)  # from [32, 32, 3, N]
            labels = content["y"].reshape(len(images))
            if (
                images.shape[1:] != (32, 32, 3)
                or not np.isin(labels, range(1, 11)).all()
            ):
                raise ValueError("it holds no 32x32 images with labels 1 to 10")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield (
                index,
                {
                    "id": f"{prefix}{index:06d}",
                    "image": Image.fromarray(image),
                    "label": int(label) % 10,  # the files call the digit 0 '10'
                },
            )
