"""The kinds of data, and the reader of each."""

from collections.abc import Mapping
from typing import Any

from kdjax.data.own import arrays, folder, parquet, tfds
from kdjax.data.own.given import ArrayData, EncodedData
from kdjax.data.own.spec import KINDS, OwnData
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import expand
from kdjax.runtime.settings import build


def parse(settings: Mapping[str, Any] | OwnData) -> OwnData:
    """Returns the settings of a config's data section, without its augmentation.

    Raises:
        UserError: a key is unknown, or a value has another type or is out of range.
    """
    if isinstance(settings, OwnData):
        return settings
    known = {key: value for key, value in settings.items() if key != "augment"}
    return build(OwnData, "data", known)


def read(settings: OwnData) -> EncodedData | ArrayData:
    """Returns the data at the settings' path.

    Raises:
        UserError: there is nothing, or data of another kind.
    """
    if settings.name not in KINDS:
        return arrays.from_entry(settings)
    if settings.name == "folder":
        return folder.read(settings.path)
    if settings.name == "npz":
        return arrays.read_npz(settings.path)
    if settings.name == "arrays":
        return arrays.registered(settings.path)
    if settings.name == "parquet":
        return parquet.read(settings)
    return tfds.read(settings)


def find_kind(path: str) -> str:
    """Returns the kind of data at a path: 'folder', 'npz' or 'parquet'.

    Raises:
        UserError: there is nothing, or data of no known kind.
    """
    place = expand(path)
    if not place.exists():
        raise UserError(f"no such folder or file: {path}")
    choices = "choices: a folder of class folders, an .npz file, parquet files"
    if place.is_file():
        suffix = place.suffix.casefold()
        if suffix in (".npz", ".parquet"):
            return suffix[1:]
        raise UserError(f"{path} is a file of {suffix or 'no suffix'}; {choices}")
    if parquet.files_of(place):
        return "parquet"
    if folder.subfolders(place):
        return "folder"
    raise UserError(f"{path} holds {folder.contents(place)}; {choices}")
