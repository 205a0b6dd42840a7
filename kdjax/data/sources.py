"""The data sets: uint8 images and labels in memory, by name.

    dataset = load("cifar10", folder, train_size=5000)

`digits` comes with scikit-learn and needs no download; the others are read from the
folder to which TFDS or `python -m kdjax.data.prepare` wrote them.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.data import digits, tfds_files
from kdjax.data.subsets import check_held, check_size, stratified
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.files import digest, expand

_OF_DIGITS = ("digits", "svhn")  # whose classes are these


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N].
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
        name: its key in `SOURCES`, or the kind of one's own data.
        version: the version of the files it was read from.
        train: the training images.
        test: the test images.
        num_classes: labels are below this number.
        mean: mean of each channel, on the scale 0 to 1.
        std: standard deviation of each channel, on the scale 0 to 1.
        classes: their names by label, if they are known.
        source_content: a hash of the files that the images were made from, which is
            used in place of a hash of the images.
    """

    name: str
    version: str
    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    source_content: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.train.images.shape[1:]

    @property
    def train_size(self) -> int:
        """The number of training images."""
        return len(self.train.labels)

    @property
    def test_size(self) -> int:
        """The number of test images."""
        return len(self.test.labels)

    @functools.cached_property
    def content(self) -> str:
        """A hash of all images and labels."""
        if self.source_content:
            return self.source_content
        parts = (self.train, self.test)
        return digest([array for p in parts for array in (p.images, p.labels)])


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set is, and its properties.

    Attributes:
        tfds_name: its name in TFDS; None if it needs no files.
        num_classes: the number of classes.
        image_shape: height, width and channels.
        train_size: the number of training images.
        test_size: the number of test images.
        mean: see `Dataset`.
        std: see `Dataset`.
        test_split: the name of TFDS for the split that serves as test set.
        in_memory: whether it fits into memory; otherwise it is streamed.
        classes: their names by label, if they are known.
    """

    tfds_name: str | None
    num_classes: int
    image_shape: tuple[int, int, int]
    train_size: int
    test_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_split: str = "test"
    in_memory: bool = True
    classes: tuple[str, ...] = ()


def _of_255(*channels: float) -> tuple[float, ...]:
    return tuple(channel / 255 for channel in channels)


# CIFAR: the constants of Zagoruyko's released code. Digits: of the training images.
SOURCES = {
    "digits": Source(None, 10, (8, 8, 1), 1437, 360, (0.3049,), (0.3758,)),
    "cifar10": Source(
        "cifar10",
        10,
        (32, 32, 3),
        50_000,
        10_000,
        _of_255(125.3, 123.0, 113.9),
        _of_255(63.0, 62.1, 66.7),
    ),
    "cifar100": Source(
        "cifar100",
        100,
        (32, 32, 3),
        50_000,
        10_000,
        _of_255(129.3, 124.1, 112.4),
        _of_255(68.2, 65.4, 70.4),
    ),
    # The 531,131 easier images of the split 'extra' are not used.
    "svhn": Source(
        "svhn_cropped",
        10,
        (32, 32, 3),
        73_257,
        26_032,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
    ),
    # The labels of the published test images are secret: validation images are used.
    "tiny_imagenet": Source(
        "tiny_imagenet",
        200,
        (64, 64, 3),
        100_000,
        10_000,
        (0.4802, 0.4481, 0.3975),
        (0.2770, 0.2691, 0.2821),
        test_split="validation",
    ),
    "imagenet": Source(
        "imagenet2012",
        1000,
        (224, 224, 3),
        1_281_167,
        50_000,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        test_split="validation",
        in_memory=False,
    ),
}


def load(
    name: str,
    dir: str | None = None,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    validation: int = 0,
    normalise: bool = True,
) -> Dataset:
    """Reads a data set into memory.

    Args:
        name: a key of `SOURCES`.
        dir: the folder of TFDS data sets; by default TFDS's own.
        train_size: the number of training images; None: all.
        test_size: the number of test images; None: all.
        validation: if positive, this many images are removed from the training set and
            replace the test images, which are not read.
        normalise: whether mean and deviation are the data set's, or 0 and 1.

    Returns:
        The data set. Its subsets are fixed: class counts are within one of
        proportional, a smaller subset lies within every larger one, and images keep
        their order.

    Raises:
        UserError: there is no data set of that name, it is not prepared or damaged, or
            a size is not between 1 and that of the split.
    """
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    source = SOURCES[name]
    if not source.in_memory:
        raise UserError(
            f"data set {name!r} does not fit into memory: it can only be streamed"
        )
    if source.tfds_name is None:
        version = "1"
        train, test = (Split(*part) for part in digits.read())
    else:
        prepared = tfds_files.locate(name, source.tfds_name, dir)
        version = prepared.version
        train = Split(*tfds_files.read(prepared, "train"))
        if not validation:
            test = Split(*tfds_files.read(prepared, source.test_split))
    if validation:
        train, test = _hold_out(train, validation, f"validation of {name}")
    return Dataset(
        name=name,
        version=version,
        train=_subset(train, train_size, f"train_size of {name}"),
        test=_subset(test, test_size, f"test_size of {name}"),
        num_classes=source.num_classes,
        mean=source.mean if normalise else (0.0,) * len(source.mean),
        std=source.std if normalise else (1.0,) * len(source.std),
    )


def _hold_out(split: Split, size: int, what: str) -> tuple[Split, Split]:
    """Splits off a stratified part of a given size; returns the rest and the part."""
    check_held(size, len(split.labels), what)
    held = np.zeros(len(split.labels), bool)
    held[stratified(split.labels, size)] = True
    return (
        Split(split.images[~held], split.labels[~held]),
        Split(split.images[held], split.labels[held]),
    )


def expected(
    name: str,
    dir: str | None = None,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    validation: int = 0,
    normalise: bool = True,
    image_size: int | None = None,
    **rest: Any,
) -> Source:
    """Returns the description of a data set, without reading its files.

    It takes the arguments of `load` and `streaming.opening.open_streamed`, of which
    some have no effect here. One's own data takes those of `own.OwnData`, and its files
    are read.

    Raises:
        UserError: a size is not between 1 and that of the split.
    """
    if name not in SOURCES:
        from kdjax.data import own  # which builds on this module

        sizes = {"train_size": train_size, "test_size": test_size}
        options = {"validation": validation, "normalise": normalise}
        seen = {"name": name, "dir": dir, "image_size": image_size}
        return own.expected({**seen, **sizes, **options, **rest})
    source = SOURCES[name]
    if image_size is not None:
        channels = source.image_shape[-1]
        source = dataclasses.replace(
            source, image_shape=(image_size, image_size, channels)
        )
    train, test = source.train_size, source.test_size
    if validation:
        check_held(validation, train, f"validation of {name}")
        train, test = train - validation, validation
    if train_size is not None:
        check_size(train_size, train, f"train_size of {name}")
    if test_size is not None:
        check_size(test_size, test, f"test_size of {name}")
    return dataclasses.replace(
        source,
        train_size=train if train_size is None else train_size,
        test_size=test if test_size is None else test_size,
        mean=source.mean if normalise else (0.0,) * len(source.mean),
        std=source.std if normalise else (1.0,) * len(source.std),
    )


def class_names(name: str, dir: str | None = None) -> tuple[str, ...]:
    """Returns the names of a data set's classes by label; empty if they are unknown.

    Args:
        name: a key of `SOURCES`; for other names the result is empty.
        dir: the folder of TFDS data sets, whose files have the names; by default the
            one TFDS uses.

    Raises:
        UserError: the data set's description there cannot be read.
    """
    if name in _OF_DIGITS:
        return tuple(map(str, range(10)))
    source = SOURCES.get(name)
    if source is None or source.tfds_name is None:
        return ()
    folder = expand(dir or tfds_files.default_data_dir())
    prepared = tfds_files.find(name, source.tfds_name, folder)
    names = tfds_files.class_names(prepared) if prepared else ()
    return names if len(names) == source.num_classes else ()


def fits_memory(data: Mapping[str, Any]) -> bool:
    """Returns whether a data set is read into memory; otherwise it is streamed.

    Args:
        data: a config's data section.

    Raises:
        UserError: one's own data is missing, or does not match the section.
    """
    if data["name"] in SOURCES:
        return SOURCES[data["name"]].in_memory
    return expected(**data).in_memory


def _subset(split: Split, size: int | None, what: str) -> Split:
    if size is None:
        return split
    check_size(size, len(split.labels), what)
    # Images keep their order.
    chosen = np.sort(stratified(split.labels, size))
    return Split(split.images[chosen], split.labels[chosen])
