"""Limits of the size of unpacked files: an error line instead of a full memory."""

import functools
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports every compression: not for decoding images
    import zipfile

MOST_PIXELS = 89_478_485
"""Of an image. PIL warns about larger ones; converting one takes more than a gigabyte
in every process that decodes images."""

MOST_BYTES = 512 << 20
"""Of an encoded image, or of one member of a published archive."""

_MAT_HEADER = 128  # bytes of a MATLAB 5 file before its first element
_MAT_COMPRESSED = 15  # the type of an element that zlib has packed


@functools.cache
def memory() -> int:
    """Returns the bytes of memory of this machine, or of this container."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or 'max'
        return memory


def check_bytes(size: int, what: str = "it") -> None:
    """Raises ValueError if a file is larger than any image or archive member."""
    if size > MOST_BYTES:
        raise ValueError(
            f"{what} has {size >> 20:,} MiB; the limit is {MOST_BYTES >> 20:,}"
        )


def check_fits(size: int, what: str) -> None:
    """Raises ValueError if arrays take more than half of the memory.

    Half: choosing training and test images of arrays copies them.
    """
    if size > memory() // 2:
        raise ValueError(
            f"{what} unpack to {size / 1e9:,.1f} GB, more than half of the "
            f"{memory() / 1e9:,.1f} GB of memory"
        )


def read_member(archive: "zipfile.ZipFile", name: str) -> bytes:
    """Returns a member of a zip file.

    Zip files state sizes beforehand, and no more than that is unpacked.

    Raises:
        ValueError: the member is larger than any published one.
        KeyError: there is no member of that name.
    """
    check_bytes(archive.getinfo(name).file_size, name)
    return archive.read(name)


def check_mat(path: Path) -> None:
    """Raises ValueError if an element of a MATLAB 5 file unpacks to too much.

    Their sizes are not stated, so they are unpacked piece by piece and discarded.
    """
    with open(path, "rb") as file:
        header = file.read(_MAT_HEADER)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
        while order and len(head := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", head)
            check_bytes(size, "a packed element")
            content = file.read(size)
            if kind != _MAT_COMPRESSED:
                continue
            unpacking, total = zlib.decompressobj(), 0
            while content:
                total += len(unpacking.decompress(content, 1 << 20))
                check_bytes(total, "an element")
                content = unpacking.unconsumed_tail
