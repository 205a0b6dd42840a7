"""One's own data: folders of images, arrays, parquet, any TFDS data set.

found = describe({"name": "folder", "path": "photos"})
data = open_own({"name": "folder", "path": "photos", "image_size": 64})
"""

from kdjax.data.own.arrays import register_arrays
from kdjax.data.own.kinds import find_kind, parse
from kdjax.data.own.opening import open_own
from kdjax.data.own.plan import Description, describe, expected
from kdjax.data.own.spec import GROUP, KINDS, OwnData, is_own, names
from kdjax.data.pixels import fit

__all__ = [
    "GROUP",
    "KINDS",
    "Description",
    "OwnData",
    "describe",
    "expected",
    "find_kind",
    "fit",
    "is_own",
    "names",
    "open_own",
    "parse",
    "register_arrays",
]
