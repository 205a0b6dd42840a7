"""Image files, found in folders while they are used."""

import os
from collections.abc import Callable, Iterable, Iterator

from kdjax.data.pixels import SUFFIXES


def find(paths: Iterable[str], report: Callable[[str], None]) -> Iterator[str]:
    """Yields the image files that paths mean, in the order of the paths.

    A folder means all images in it and its subfolders, recognised by their endings, in
    the order of their names, without hidden files. Any other path is yielded unchanged,
    whatever its ending. The names in one folder are held at a time, with those of the
    folders around it.

    Args:
        paths: of files and folders.
        report: takes a line about a folder that cannot be read or holds no images.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        empty = True
        for file in _below(path, (), report):
            empty = False
            yield file
        if empty:
            report(f"there are no images in {path}")


def _below(
    folder: str, around: tuple[tuple[int, int], ...], report: Callable[[str], None]
) -> Iterator[str]:
    """Yields a folder's images; `around` are those it is in: links may lead back."""
    try:
        status = os.stat(folder)
        place = (status.st_dev, status.st_ino)
        if place in around:
            return
        names, folders = _names(folder)
    except OSError as error:
        report(f"{folder} cannot be read: {error.strerror}")
        return
    for name in names:
        path = os.path.join(folder, name)
        if name in folders:
            yield from _below(path, (*around, place), report)
        else:
            yield path


def _names(folder: str) -> tuple[list[str], set[str]]:
    """Returns the sorted names of images and folders, and which are folders."""
    names, folders = [], set()
    with os.scandir(folder) as entries:
        for entry in entries:
            # As in data sets: hidden files, and what macOS adds to archives.
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                folders.add(entry.name)
            elif os.path.splitext(entry.name)[1].casefold() not in SUFFIXES:
                continue
            names.append(entry.name)
    names.sort()
    return names, folders
