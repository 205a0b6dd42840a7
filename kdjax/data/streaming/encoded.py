"""Encoded examples of a prepared data set, read by number, for streaming."""

import contextlib
import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from kdjax.data import tfds_files
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import cache_folder

_CHUNK = 256  # records fetched at once


class Example(NamedTuple):
    """One example.

    Attributes:
        name: its file name in the published data set.
        content: the encoded image.
        label: its class.
    """

    name: str
    content: bytes
    label: int


class Records(Protocol):
    """Encoded examples that are read by number; they can be pickled."""

    @property
    def split(self) -> str:
        """The name of their split, for messages."""

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[Example | Exception]:
        """Returns the examples, or the error for one that cannot be read.

        Args:
            numbers: of records, from 0.
        """

    def labels(self) -> np.ndarray:
        """Returns every label, int32 `[N]`; -1 for an example that cannot be read."""

    def damaged(self, what: str) -> UserError:
        """Returns the error for the case that no record can be read."""


class Encoded:
    """The examples of one split; unpickled in another process, it opens the files."""

    def __init__(
        self,
        prepared: tfds_files.Prepared,
        split: str,
        image: str = "image",
        label: str = "label",
    ):
        """Opens the files.

        Args:
            prepared: the data set.
            split: the name that TFDS gives the split.
            image: the feature that holds the images.
            label: the feature that holds the classes.

        Raises:
            UserError: there is no such split, or its files are missing or damaged.
        """
        self.prepared, self.split = prepared, split
        self._image, self._label = image, label
        if not prepared.sizes.get(split):
            raise tfds_files.damaged(
                prepared,
                f"it has no split {split!r} but {', '.join(prepared.sizes) or 'none'}",
            )
        self._open()

    def __len__(self) -> int:
        return self.prepared.sizes[self.split]

    def __getstate__(self) -> dict[str, Any]:
        # Without the reader: open files cannot be pickled.
        return {key: value for key, value in vars(self).items() if key != "_source"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[Example | Exception]:
        """Returns the examples, or the error for one that cannot be read.

        Args:
            numbers: of records, from 0.
        """
        keys = [int(number) for number in numbers]
        try:
            # Read in parallel; one broken record makes the whole call fail.
            return [self._example(record) for record in self._source.__getitems__(keys)]
        except Exception:  # array_record and protobuf raise many kinds of errors
            return [self._one(key) for key in keys]

    def labels(self) -> np.ndarray:
        """Returns every label, int32 `[N]`, from the cache or by reading all files.

        An example that cannot be read has the label -1.
        """
        folder = f"{self.prepared.path.parent.name}-{self.prepared.version}"
        digest = content_of(self.prepared, [self.split])
        feature = "labels" if self._label == "label" else f"labels_{self._label}"
        cached = cache_folder() / f"{folder}-{feature}-{self.split}-{digest}.npz"
        with (
            contextlib.suppress(
                OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error
            ),
            open(cached, "rb") as file,
            np.load(file) as arrays,
        ):
            return arrays["labels"]
        size = len(self)
        console.print(
            f"reading the labels of {size:,} images ({self.split}) for a subset; they "
            f"are kept in {cached.parent}",
            markup=False,
        )
        labels = np.full(size, -1, np.int32)
        for start in range(0, size, _CHUNK):
            numbers = range(start, min(start + _CHUNK, size))
            for number, record in zip(numbers, self.read(numbers), strict=True):
                if isinstance(record, Example):
                    labels[number] = record.label
        with contextlib.suppress(OSError):  # the cache only saves time
            tfds_files.write_arrays(cached, {"labels": labels})
        return labels

    def _open(self) -> None:
        path = self.prepared.path
        with tfds_files.quiet_tfds():
            import tensorflow_datasets as tfds  # a second: not for `import kdjax`

            try:
                builder = tfds.builder_from_directory(path)
                for file in builder.info.splits[self.split].filenames:
                    (path / file).stat()  # otherwise noticed only late in an epoch
                self._source = builder.as_data_source(
                    self.split,
                    decoders={self._image: tfds.decode.SkipDecoding()},
                )
            except (RuntimeError, ValueError, KeyError, OSError) as error:
                raise self.damaged(f"{self.split}: {error}") from error

    def _one(self, key: int) -> Example | Exception:
        try:
            return self._example(self._source[key])
        except Exception as error:
            return error

    def _example(self, record: dict[str, Any]) -> Example:
        name = record.get("file_name", b"?")
        name = name.decode() if isinstance(name, bytes) else str(name)
        return Example(name, record[self._image], int(record[self._label]))

    def damaged(self, what: str) -> UserError:
        """Returns the error for the case that no file can be read."""
        return tfds_files.damaged(self.prepared, what)


def content_of(prepared: tfds_files.Prepared, splits: Sequence[str]) -> str:
    """Returns a hash of some splits' files: their names, sizes and numbers of records.

    It does not depend on the folder or the files' dates, so that copies have the same
    hash. Of the contents only dataset_info.json is hashed, so that no large file is
    read.
    """
    files = [
        (file.name, file.stat().st_size)
        for split in splits
        for file in sorted(prepared.path.glob(f"*-{split}.array_record*"))
    ]
    described = [
        {key: split.get(key) for key in ("name", "shardLengths", "numBytes")}
        for split in prepared.info["splits"]
        if split["name"] in splits
    ]
    content = json.dumps([prepared.version, files, described], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
