"""Recordings: a network's training-mode logits while it learned, epoch by epoch.

CTKD's scratch teacher retraces the expert: same start, same stream, same recipe, and no
gradient from the student. So the expert's recorded logits can stand in for training it
again (`scratch=replay`), at the price of KD.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from kdjax.runtime import parallel
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import replace_whole


def path(folder: Path, epoch: int) -> Path:
    """Returns the file of an epoch, counted from 0, in a replica's folder.

    Its checksum is that of the archive. Earlier versions wrote arrays without one.
    """
    file = folder / "recording" / f"epoch-{epoch:04d}.npz"
    plain = file.with_suffix(".npy")
    return plain if plain.exists() and not file.exists() else file


def write(folder: Path, epoch: int, logits: np.ndarray) -> None:
    """Writes an epoch's logits.

    Args:
        folder: of the replica whose logits they are.
        epoch: counted from 0.
        logits: `[N, classes]`; anything for images that the epoch left out.
    """
    if parallel.is_first():
        file = path(folder, epoch).with_suffix(".npz")
        file.parent.mkdir(exist_ok=True)
        with replace_whole(file) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, logits=logits)


def _load(file: Path) -> np.ndarray:
    with open(file, "rb") as stream:
        if file.suffix == ".npy":
            return np.load(stream)
        with np.load(stream) as arrays:
            return arrays["logits"]


def read(folder: Path, epoch: int, shape: tuple[int, int]) -> np.ndarray:
    """Returns an epoch's logits.

    Raises:
        UserError: there is no such recording, or it is damaged.
    """
    file = path(folder, epoch)
    try:
        logits = _load(file)
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"the recording {file} cannot be read ({error}); train that stage again in "
            "another workdir, or use scratch=joint"
        ) from error
    if logits.shape != shape:
        raise UserError(f"the recording {file} has shape {logits.shape}, not {shape}")
    return logits
