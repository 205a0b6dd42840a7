"""CIFAR-10 and CIFAR-100 from the published binary archives."""

import gzip
import pathlib
import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

import numpy as np
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download import DownloadManager
from tensorflow_datasets.image_classification import cifar

from kdjax.data.builders.archive import FromArchive, reading

_PIXELS = 3 * 32 * 32


class _Cifar(FromArchive):
    """Overrides what needs TensorFlow in the official builders."""

    info: Any
    _cifar_info: Any  # the official builder's table of urls, files and labels

    def _split_generators(self, manager: DownloadManager) -> dict[str, Iterator[Any]]:
        layout = self._cifar_info
        path = self.fetch(manager, layout.url)
        names = layout.label_files + layout.train_files + layout.test_files
        with reading(path):
            files = _extract(path, [layout.prefix + name for name in names])
            for key, name in zip(layout.label_keys, layout.label_files, strict=True):
                text = files[layout.prefix + name].decode()
                self.info.features[key].names = [
                    line for line in text.split("\n") if line
                ]
        return {
            split: self._generate_examples(
                f"{split}_", path, [files[layout.prefix + name] for name in names]
            )
            for split, names in (
                ("train", layout.train_files),
                ("test", layout.test_files),
            )
        }

    def _generate_examples(
        self, prefix: str, path: pathlib.Path, batches: list[bytes]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        keys = self._cifar_info.label_keys
        with reading(path):
            # A record: one byte for each label, then the red, green and blue planes.
            records = np.concatenate(
                [
                    np.frombuffer(batch, np.uint8).reshape(-1, len(keys) + _PIXELS)
                    for batch in batches
                ]
            )
        for index, record in enumerate(records):
            image = record[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
            yield (
                index,
                {
                    **{key: int(record[i]) for i, key in enumerate(keys)},
                    "id": f"{prefix}{index:05d}",
                    "image": Image.fromarray(image),  # arrays TFDS encodes with TF
                },
            )


def _extract(path: pathlib.Path, names: list[str]) -> dict[str, bytes]:
    """Returns the contents of some members of a tar archive, read in one pass."""
    with gzip.open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            files = {
                member.name: cast(IO[bytes], archive.extractfile(member)).read()
                for member in archive
                if member.name in names
            }
        while stream.read(1 << 20):  # gzip compares its checksum at the very end
            pass
    if missing := set(names) - set(files):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return files


# The official builders of these names are registered already.
with registered.skip_registration():

    class Cifar10(_Cifar, cifar.Cifar10):
        """CIFAR-10: 50,000 and 10,000 images of 32x32 pixels in 10 classes."""

    class Cifar100(_Cifar, cifar.Cifar100):
        """CIFAR-100: 50,000 and 10,000 images of 32x32 pixels in 100 classes."""
