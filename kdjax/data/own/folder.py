"""A folder of images: one folder per class, below train/ and test/ or without them."""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdjax.data import limits, pixels
from kdjax.data.own import classes as checks
from kdjax.data.own.given import EncodedData
from kdjax.data.streaming.encoded import Example
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import expand

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
"""Names of the splits' folders; of several test folders the first is used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files as records.

    Attributes:
        split: the name of their split, for messages.
        root: the folder.
        names: paths within it.
        classes: int32 `[N]`.
    """

    split: str
    root: str
    names: tuple[str, ...]
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def read(self, numbers: Sequence[int] | np.ndarray) -> list[Example | Exception]:
        """Returns the files' contents, or the error for a file that cannot be read."""
        return [self._one(int(number)) for number in numbers]

    def labels(self) -> np.ndarray:
        """Returns every label, int32 `[N]`."""
        return self.classes

    def damaged(self, what: str) -> UserError:
        """Returns the error for the case that no file can be read."""
        return UserError(f"folder {self.root}: {what}")

    def _one(self, number: int) -> Example | Exception:
        name = self.names[number]
        try:
            with open(os.path.join(self.root, name), "rb") as file:
                limits.check_bytes(os.fstat(file.fileno()).st_size)
                return Example(name, file.read(), int(self.classes[number]))
        except (OSError, ValueError) as error:
            return error


def subfolders(path: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(one.name for one in os.scandir(path) if one.is_dir() and _counts(one))


def read(path: str) -> EncodedData:
    """Returns the images of a folder, sorted by class and name; opens no file.

    Raises:
        UserError: the folder does not exist or has no class folders; or a class is
            empty, is the only one, differs from another only in upper and lower case,
            or occurs in test but not in training.
    """
    root = expand(path)
    label = f"folder {path}"
    if not root.is_dir():
        raise UserError(f"no such folder: {path}")
    train, tests = _splits(root)
    test = tests[0] if tests else None
    unread = ", ".join(f"{folder.name}/" for folder in tests[1:])
    parts = [("train" if test else "images", train)]
    parts += [("test", test)] if test else []
    stamp = hashlib.sha256(str(root.resolve()).encode())
    try:
        found = [_scan(folder, stamp) for _, folder in parts]
    except OSError as error:
        raise UserError(f"{label}: {error.filename}: {error.strerror}") from error
    names = tuple(sorted(found[0]))
    if not names:
        raise UserError(f"{label}: {_without_classes(train)}")
    for name in sorted({name for by_class in found for name in by_class}):
        if name not in found[0]:
            raise UserError(
                f"{label}: the class {name!r} is in test but not in training"
            )
        for (_, folder), by_class in zip(parts, found, strict=True):
            if name in by_class and not by_class[name]:
                raise UserError(
                    f"{label}: the class {name!r} has no images: "
                    f"{contents(folder / name)}"
                )
    checks.check_names(names, label)
    records = [
        _records(root, split, folder, by_class, names)
        for (split, folder), by_class in zip(parts, found, strict=True)
    ]
    return EncodedData(
        train=records[0],
        test=records[1] if test else None,
        classes=names,
        stamp=stamp.hexdigest()[:16],
        note=f"{tests[0].name}/ is the test set; {unread} is not read"
        if unread
        else "",
    )


def _splits(root: Path) -> tuple[Path, list[Path]]:
    """Returns the folder of the training classes and the folders of test classes."""
    inside = {name.casefold(): root / name for name in subfolders(root)}

    def split(names: Sequence[str]) -> list[Path]:
        # A class may be called 'train', but then there are images in its folder.
        folders = [inside[name] for name in names if name in inside]
        return [folder for folder in folders if subfolders(folder)]

    train, tests = split(TRAIN), split(TEST)
    if train:
        return train[0], tests
    if tests:
        raise UserError(
            f"folder {root} has {tests[0].name}/ with class folders, but no train/"
        )
    return root, []


def _scan(folder: Path, stamp: "hashlib._Hash") -> dict[str, list[str]]:
    """Returns the image files of every class, sorted, as paths within its folder."""
    found: dict[str, list[str]] = {}
    for name in subfolders(folder):
        files: list[tuple[str, int, int]] = []
        pending = [""]
        while pending:
            inside = pending.pop()
            with os.scandir(folder / name / inside) as entries:
                for entry in entries:
                    if not _counts(entry):
                        continue
                    if entry.is_dir():
                        pending.append(os.path.join(inside, entry.name))
                    elif os.path.splitext(entry.name)[1].casefold() in pixels.SUFFIXES:
                        file = os.path.join(inside, entry.name)
                        files.append((file, *_size_and_time(entry)))
        files.sort()
        stamp.update(f"{folder.name}/{name} {files}\n".encode())
        found[name] = [file for file, _, _ in files]
    return found


def _records(
    root: Path,
    split: str,
    folder: Path,
    by_class: dict[str, list[str]],
    names: Sequence[str],
) -> Files:
    below = folder.relative_to(root)
    files = [
        (str(below / name / file), label)
        for label, name in enumerate(names)
        for file in by_class.get(name, ())
    ]
    return Files(
        split,
        str(root),
        tuple(file for file, _ in files),
        np.array([label for _, label in files], np.int32),
    )


def _counts(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.name != "__MACOSX"


def _without_classes(folder: Path) -> str:
    return f"there are no class folders in it, but {contents(folder)}"


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:  # a broken link: reported when it is read
        return -1, -1
    return status.st_size, status.st_mtime_ns


def contents(folder: Path) -> str:
    """Describes the content of a folder in words."""
    with os.scandir(folder) as entries:
        suffixes = Counter(
            os.path.splitext(entry.name)[1].casefold() or "no suffix"
            for entry in entries
            if _counts(entry)
        )
    if not suffixes:
        return "nothing"
    several = ", ".join(f"{suffix} ({n})" for suffix, n in suffixes.most_common(5))
    return f"files of {several}"
