"""Recordings: a network's training-mode logits while it learned, epoch by epoch.

CTKD's scratch teacher retraces the expert: same start, same stream, same recipe, and no
gradient from the student. So the expert's recorded logits can stand in for training it
again (`scratch=replay`), at the price of KD.
"""

from pathlib import Path

import numpy as np

from kdjax.runtime import parallel
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import replace_whole


def path(folder: Path, epoch: int) -> Path:
    """Returns the file of an epoch, counted from 0, in a replica's folder."""
    return folder / "recording" / f"epoch-{epoch:04d}.npy"


def write(folder: Path, epoch: int, logits: np.ndarray) -> None:
    """Writes an epoch's logits.

    Args:
        folder: of the replica whose logits they are.
        epoch: counted from 0.
        logits: `[N, classes]`; anything for images that the epoch left out.
    """
    if parallel.is_first():
        file = path(folder, epoch)
        file.parent.mkdir(exist_ok=True)
        with replace_whole(file) as temporary, open(temporary, "wb") as stream:
            np.save(stream, logits)


def read(folder: Path, epoch: int, shape: tuple[int, int]) -> np.ndarray:
    """Returns an epoch's logits.

    Raises:
        UserError: there is no such recording, or it is damaged.
    """
    file = path(folder, epoch)
    try:
        logits = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"the recording {file} cannot be read ({error}); train that stage again in "
            "another workdir, or use scratch=joint"
        ) from error
    if logits.shape != shape:
        raise UserError(f"the recording {file} has shape {logits.shape}, not {shape}")
    return logits
