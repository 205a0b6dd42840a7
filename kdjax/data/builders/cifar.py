"""CIFAR-10 and CIFAR-100 from the published binary archives."""

import dataclasses
import gzip
import pathlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, ClassVar, cast

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kdjax.data import limits
from kdjax.data.builders.archive import FromArchive, reading

_PIXELS = 3 * 32 * 32
# Any: TFDS looks these classes up by name, where type checkers cannot follow.
_OfficialCifar10: Any = tfds.builder_cls("cifar10")
_OfficialCifar100: Any = tfds.builder_cls("cifar100")


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The content of an archive.

    Attributes:
        url: where it is published.
        folder: of all its files.
        label_files: the classes' names, by kind of label.
        train_files: with the training images.
        test_files: with the test images.
    """

    url: str
    folder: str
    label_files: Mapping[str, str]
    train_files: Sequence[str]
    test_files: Sequence[str]


class _Cifar(FromArchive):
    """Overrides the parts of the official builders that need TensorFlow."""

    info: Any
    _layout: ClassVar[_Layout]

    def _split_generators(
        self, manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[Any]]:
        layout = self._layout
        path = self.fetch(manager, layout.url)
        names = [*layout.label_files.values(), *layout.train_files, *layout.test_files]
        with reading(path):
            files = _extract(path, [layout.folder + name for name in names])
            for key, name in layout.label_files.items():
                text = files[layout.folder + name].decode()
                self.info.features[key].names = [
                    line for line in text.split("\n") if line
                ]
        return {
            split: self._generate_examples(
                f"{split}_", path, [files[layout.folder + name] for name in names]
            )
            for split, names in (
                ("train", layout.train_files),
                ("test", layout.test_files),
            )
        }

    def _generate_examples(
        self, prefix: str, path: pathlib.Path, batches: list[bytes]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        keys = tuple(self._layout.label_files)
        with reading(path):
            # A record: one byte for each label, then the red, green and blue planes.
            records = np.concatenate(
                [
                    np.frombuffer(batch, np.uint8).reshape(-1, len(keys) + _PIXELS)
                    for batch in batches
                ]
            )
        for index, record in enumerate(records):
            # Colour planes [3, 32, 32] -> [32, 32, 3]
            image = record[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
            yield (
                index,
                {
                    **{key: int(record[i]) for i, key in enumerate(keys)},
                    "id": f"{prefix}{index:05d}",
                    "image": Image.fromarray(image),  # TFDS encodes arrays with TF
                },
            )


def _extract(path: pathlib.Path, names: list[str]) -> dict[str, bytes]:
    """Returns the contents of some members of a tar archive, read in one pass."""
    with gzip.open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            files = {
                member.name: _content(archive, member)
                for member in archive
                if member.name in names
            }
        while stream.read(1 << 20):  # gzip compares its checksum at the very end
            pass
    if missing := set(names) - set(files):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return files


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Returns a member's content; its size is stated before it.

    Raises:
        ValueError: it is larger than any published member.
    """
    limits.check_bytes(member.size, member.name)
    return cast(IO[bytes], archive.extractfile(member)).read()


# The official builders of these names are registered already.
class Cifar10(_Cifar, _OfficialCifar10, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10: 50,000 and 10,000 images of 32x32 pixels in 10 classes."""

    _layout = _Layout(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin/",
        label_files={"label": "batches.meta.txt"},
        train_files=[f"data_batch_{number}.bin" for number in range(1, 6)],
        test_files=["test_batch.bin"],
    )


class Cifar100(_Cifar, _OfficialCifar100, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-100: 50,000 and 10,000 images of 32x32 pixels in 100 classes."""

    _layout = _Layout(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        folder="cifar-100-binary/",
        label_files={
            "coarse_label": "coarse_label_names.txt",
            "label": "fine_label_names.txt",
        },
        train_files=["train.bin"],
        test_files=["test.bin"],
    )
