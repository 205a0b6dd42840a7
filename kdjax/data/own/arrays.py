"""Decoded images: npz files, arrays in Python, and data of other packages."""

import hashlib
import zipfile
import zlib
from typing import Any

import numpy as np

from kdjax.data import limits, pixels
from kdjax.data.own import classes as checks
from kdjax.data.own.given import ArrayData
from kdjax.data.own.spec import GROUP, OwnData, entries
from kdjax.data.sources import Split
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import expand

_KEYS = ("images", "labels", "test_images", "test_labels", "classes")
_registered: dict[str, ArrayData] = {}


def from_arrays(
    images: Any,
    labels: Any,
    test_images: Any = None,
    test_labels: Any = None,
    classes: Any = None,
    *,
    what: str = "arrays",
) -> ArrayData:
    """Checks arrays and returns them as data.

    Args:
        images: uint8 `[N, H, W]` or `[N, H, W, C]`, C being 1 or 3.
        labels: `[N]` integers from 0, or names.
        test_images: as `images`, of the same height, width and channels.
        test_labels: as `labels`.
        classes: names by label; None: taken from the labels.
        what: the data set's name in messages.

    Raises:
        UserError: pixels are not uint8, shapes or lengths do not match, test images
            have no labels, or labels are invalid (see `classes.encode`).
    """
    if (test_images is None) != (test_labels is None):
        raise UserError(f"{what}: test_images and test_labels belong together")
    parts = [pixels.check_array(images, f"{what}: images")]
    given = [checks.plain(labels, f"{what}: labels")]
    if test_images is not None:
        parts.append(pixels.check_array(test_images, f"{what}: test_images"))
        given.append(checks.plain(test_labels, f"{what}: test_labels"))
        if parts[0].shape[1:] != parts[1].shape[1:]:
            raise UserError(
                f"{what}: images are {parts[0].shape[1:]}, test_images "
                f"{parts[1].shape[1:]}"
            )
    for part, those in zip(parts, given, strict=True):
        if len(part) != len(those):
            raise UserError(f"{what}: {len(part)} images, but {len(those)} labels")
    names = None if classes is None else tuple(map(str, np.asarray(classes)))
    train, test, names = checks.encode(labels, test_labels, names, what)
    return ArrayData(
        Split(parts[0], train),
        Split(parts[1], test) if test is not None else None,
        names,
    )


def register_arrays(
    images: Any, labels: Any, test_images: Any = None, test_labels: Any = None
) -> str:
    """Registers arrays in this process as data of the kind 'arrays'.

    Args:
        images: uint8 `[N, H, W]` or `[N, H, W, C]`, C being 1 or 3.
        labels: `[N]` integers from 0, or names.
        test_images: as `images`, of the same height, width and channels; None: a part
            of the images.
        test_labels: as `labels`.

    Returns:
        The path under which they are found: 'arrays-' and a hash of all arrays.

    Raises:
        UserError: as for `from_arrays`.
    """
    data = from_arrays(images, labels, test_images, test_labels)
    content = hashlib.sha256(repr(data.classes).encode())
    for split in filter(None, (data.train, data.test)):
        for array in (split.images, split.labels):
            content.update(f"{array.dtype} {array.shape}\n".encode())
            content.update(np.ascontiguousarray(array).data)
    path = f"arrays-{content.hexdigest()[:16]}"
    _registered[path] = data
    return path


def registered(path: str) -> ArrayData:
    """Returns the arrays that `register_arrays` has registered.

    Raises:
        UserError: they are not registered in this process.
    """
    if path not in _registered:
        raise UserError(
            f"data.path={path!r}: these arrays are not known to this process; pass "
            "them to kdjax.data.own.register_arrays first, or save them as npz"
        )
    return _registered[path]


def read_npz(path: str) -> ArrayData:
    """Returns the arrays of an npz file.

    Raises:
        UserError: the file does not exist, is not an npz file, or has no images or no
            labels.
    """
    what, file = f"npz {path}", expand(path)
    if not file.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with zipfile.ZipFile(file) as packed:
            sizes = (one.file_size for one in packed.infolist())
            limits.check_fits(sum(sizes), "its arrays")
        with np.load(file, allow_pickle=False) as arrays:
            missing = [key for key in _KEYS[:2] if key not in arrays.files]
            if missing:
                raise UserError(
                    f"{what}: there is no {missing[0]!r}, but "
                    f"{', '.join(arrays.files) or 'nothing'}"
                )
            found = {key: arrays[key] for key in _KEYS if key in arrays.files}
    except UserError:
        raise
    except (
        *(OSError, ValueError, EOFError, MemoryError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise UserError(f"{what} cannot be read: {pixels.reason(error)}") from error
    return from_arrays(**found, what=what)


def from_entry(settings: OwnData) -> ArrayData:
    """Returns the data that the function of an installed package returns.

    It is called as `function(path, **options)` and returns images and labels and, if
    it has them, test images, test labels and class names, as for `from_arrays`.

    Raises:
        UserError: the function cannot be imported, or returns something else.
    """
    entry = entries()[settings.name]
    what = f"data source {settings.name!r} ({entry.value})"
    try:
        function = entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} cannot be imported: {error}") from error
    if not callable(function):
        raise UserError(f"{what} is not a function (entry points {GROUP})")
    found = function(settings.path, **settings.options)
    if not isinstance(found, tuple) or not 2 <= len(found) <= len(_KEYS):
        raise UserError(
            f"{what} returned {type(found).__name__}; it must return a tuple of "
            f"{', '.join(_KEYS[:2])}[, {', '.join(_KEYS[2:])}]"
        )
    return from_arrays(*found, what=what)
