"""Faults of the file system: the process is killed, or its calls fail.

A small library that is loaded before all others counts what a process changes below a
folder (files made, written, moved, removed) and lets a fault come at the n-th change.
"""

import ctypes
import enum
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")


class Fault(enum.IntEnum):
    """What happens at the n-th change; but for KILL and ONCE, and at all later ones."""

    COUNT = 0
    KILL = 1  # the process is, as by kill -9; a write is half done
    FULL = 2  # no space left: nothing can be made or written
    QUOTA = 3  # the same of a quota
    INODES = 4  # no file or folder can be made; those that are there can be written
    BROKEN = 5  # every change is an input/output error
    ONCE = 6  # this change alone is
    UNREADABLE = 7  # every file that is opened for reading is, from the n-th on


@functools.cache
def library() -> Path | None:
    """Returns the compiled library; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    built = Path(tempfile.mkdtemp(prefix="campaign-")) / "shim.so"
    command = [compiler, "-O1", "-fPIC", "-shared", "-o", built, SOURCE, "-ldl"]
    done = subprocess.run(command, capture_output=True, check=False)
    return built if done.returncode == 0 else None


def arm(folder: Path, fault: Fault, number: int) -> None:
    """Lets a fault come in this process, which the library was loaded into."""
    arm = ctypes.CDLL(None).campaign_arm
    arm.argtypes = ctypes.c_char_p, ctypes.c_int, ctypes.c_long
    arm(str(folder).encode(), int(fault), number)


def counted() -> tuple[int, int]:
    """Returns how many changes and openings for reading there were."""
    here = ctypes.CDLL(None)
    here.campaign_changes.restype = here.campaign_reads.restype = ctypes.c_long
    return here.campaign_changes(), here.campaign_reads()
