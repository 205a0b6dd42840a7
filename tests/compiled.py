"""Compiled programs that one run of the tests keeps for the next.

JAX writes them in place: another process may find half of one, and a killed process
leaves half of one for good. So each process writes into a folder of its own, and whole
programs alone are linked between that and what is kept.
"""

import contextlib
import os
import shutil
import time
import zlib
from pathlib import Path

try:
    # Private; seen in jax 0.10. It fails where a compressed program has no end.
    from jax._src.compilation_cache import decompress_executable
except ImportError:  # then nothing is kept
    decompress_executable = None

LIMIT = 2 * 1024**3  # bytes
# For processes. A program is found by its key, which has the cache's path in it unless
# XLA's own caches, for GPUs, are off.
ANYWHERE = {"JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none"}
# For those that are killed, maybe while they write.
READ_ONLY = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000000"}
DAY = 24 * 3600  # longer than any run of the tests


def _cpu() -> str:
    """Returns a name for what this CPU can do: programs are compiled for that."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        flags = [line for line in lines if line.startswith(("flags", "Features"))]
        return f"{zlib.crc32(flags[0].encode()):08x}" if flags else "other"
    return "other"


def _caches() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


ROOT = _caches() / "kdjax-tests" / f"xla-{_cpu()}"
KEPT, WORKERS = ROOT / "kept", ROOT / "workers"


def own_folder() -> Path | None:
    """Returns a new folder for this process, or nothing where none can be made."""
    folder = WORKERS / f"{os.getpid()}-{time.time_ns()}"
    try:
        folder.mkdir(parents=True)
        KEPT.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder


def _link(source: Path, target: Path) -> None:
    """Puts a whole file at a path, all at once; one that is there stays."""
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError:  # another file system, or one without links
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        shutil.copyfile(source, part)
        part.replace(target)


def _programs(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if name.endswith("-cache")}


def take(folder: Path, kind: str) -> None:
    """Adds what is kept of a kind to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        for name in _programs(KEPT / kind) - _programs(folder):
            _link(KEPT / kind / name, folder / name)


def give(folder: Path, kind: str) -> None:
    """Keeps the whole programs of a folder in which nobody writes any more."""
    with contextlib.suppress(OSError):
        (KEPT / kind).mkdir(parents=True, exist_ok=True)
        for name in _programs(folder) - _programs(KEPT / kind):
            if _is_whole(folder / name):
                _link(folder / name, KEPT / kind / name)


def _is_whole(path: Path) -> bool:
    try:
        decompress_executable(path.read_bytes())
    except Exception:  # of one of three libraries
        return False
    return True


def prune() -> None:
    """Removes what is oldest beyond the limit, and folders of dead processes."""
    with contextlib.suppress(OSError):
        for folder in WORKERS.iterdir():
            if time.time() - folder.stat().st_mtime > DAY:
                shutil.rmtree(folder, ignore_errors=True)
        size = 0
        found = [(path.stat(), path) for path in KEPT.rglob("*") if path.is_file()]
        for stat, path in sorted(found, key=lambda one: -one[0].st_mtime):
            size += stat.st_size
            if size > LIMIT:
                path.unlink(missing_ok=True)
