"""Any data set that TFDS has prepared as array_record, read from its files."""

import json
from typing import Any

from kdjax.data import tfds_files
from kdjax.data.own.given import EncodedData
from kdjax.data.own.spec import OwnData
from kdjax.data.streaming.encoded import Encoded
from kdjax.runtime.errors import UserError, unknown

_TEST = ("test", "validation", "val")


def read(settings: OwnData) -> EncodedData:
    """Returns the images of a prepared data set.

    Raises:
        UserError: the data set is missing or damaged, or has no such features or
            splits.
    """
    name, _, version = settings.path.partition(":")
    prepared = tfds_files.locate(
        settings.path, name, settings.dir, version or None, own=True
    )
    label = settings.label
    features = _features(prepared)
    _check(features, settings.image_column, "Image", label)
    _check(features, settings.label_column, "ClassLabel", label)
    if "train" not in prepared.sizes:
        raise unknown(f"split of {label}", "train", prepared.sizes)
    test = next((split for split in _TEST if prepared.sizes.get(split)), None)
    columns = settings.image_column, settings.label_column
    return EncodedData(
        train=Encoded(prepared, "train", *columns),
        test=Encoded(prepared, test, *columns) if test else None,
        classes=_classes(prepared, features, settings.label_column),
        stamp=f"{tfds_files.digest_of(prepared)}-{'-'.join(columns)}",
    )


def _features(prepared: tfds_files.Prepared) -> dict[str, Any]:
    try:
        described = json.loads((prepared.path / "features.json").read_text())
        return described["featuresDict"]["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise tfds_files.damaged(prepared, f"features.json: {error}") from error


def _kind(feature: dict[str, Any]) -> str:
    return str(feature.get("pythonClassName", "")).rpartition(".")[2]


def _check(features: dict[str, Any], name: str, kind: str, label: str) -> None:
    choices = [other for other in features if _kind(features[other]) == kind]
    if name not in choices:
        raise unknown(f"{kind} feature of {label}", name, choices)


def _classes(
    prepared: tfds_files.Prepared, features: dict[str, Any], name: str
) -> tuple[str, ...]:
    """Returns the classes' names, or their numbers if they have no names."""
    file = prepared.path / f"{name}.labels.txt"
    if file.exists():
        return tuple(file.read_text().splitlines())
    try:
        count = int(features[name]["classLabel"]["numClasses"])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{prepared.name}: features.json does not say how many classes {name!r} has"
        ) from error
    return tuple(map(str, range(count)))
