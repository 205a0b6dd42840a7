"""A stage's records on disk: a line for every epoch, and TensorBoard's events."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import platform
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdjax.runtime.closing import Closing
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import replace_whole
from kdjax.train.metrics import Record


@dataclasses.dataclass(frozen=True)
class Mark:
    """How far a stage's records went when a checkpoint was made.

    Attributes:
        epochs: how many there were.
        checksum: of their lines.
    """

    epochs: int
    checksum: str


class Writer(Closing):
    """Writes a stage's records as JSON lines and TensorBoard events.

    A line is appended for every epoch and stays as it is, so that an epoch late in a
    long training costs what the first did. A resumed stage has every epoch once: what
    is on disk beyond `history` is cut off. Events are made anew from `history`.
    """

    def __init__(self, folder: Path, history: list[Record]):
        """Opens `metrics.jsonl` and `tensorboard/` in a folder.

        Raises:
            UserError: they cannot be written.
            OSError: the disk is full or broken.
        """
        self._folder = folder
        self._files = contextlib.ExitStack()
        try:
            with self._telling():
                self._open(history)
        except BaseException:
            self._files.close()
            raise

    def _open(self, history: list[Record]) -> None:
        lines = [_line(record) for record in history]
        self._epochs, self._checksum = len(lines), hashlib.sha256(b"".join(lines))
        path = _lines_path(self._folder)
        _keep(path, b"".join(lines))
        file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._lines = self._files.enter_context(file)
        events = _Events(self._folder / "tensorboard")
        self._events = self._files.enter_context(events)
        self._events.begin()
        for record in history:
            self._events.write(record)

    def write(self, record: Record) -> None:
        """Writes one epoch's record.

        Raises:
            OSError: the disk is full or broken.
        """
        line = _line(record)
        with self._telling():
            _write(self._lines, line)
            self._events.write(record)
        self._epochs += 1
        self._checksum.update(line)

    def mark(self) -> Mark:
        """Returns what finds the records so far again: see `read_records`.

        Raises:
            OSError: the disk is full or broken.
        """
        with self._telling():
            # A checkpoint must not outlive its records.
            os.fsync(self._lines.fileno())
        return Mark(self._epochs, _short(self._checksum))

    def close(self) -> None:
        """Closes both files."""
        self._files.close()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Names the folder in errors of files that name none, and says what is wrong.

        A full disk's error goes on: the command has a line for it.
        """
        try:
            yield
        except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise UserError(
                f"{error.filename or self._folder} cannot be written: {error.strerror}"
            ) from error
        except OSError as error:
            error.filename = error.filename or str(self._folder)
            raise


class _Events(Closing):
    """TensorBoard's events of a stage, written by this thread.

    A thread of their own, as `SummaryWriter` has it, would print its errors by itself
    and, on a full disk, never end.
    """

    def __init__(self, folder: Path):
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)
        folder.mkdir()
        # The name by which TensorBoard finds events.
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}"
        self._file = open(folder / name, "wb", buffering=0)  # noqa: SIM115

    def begin(self) -> None:
        """Writes what a file of events begins with."""
        from tensorboardX.proto import event_pb2

        self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, record: Record) -> None:
        """Adds an event with all of a record's figures."""
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.summary import scalar

        values = [scalar(name, value).value[0] for name, value in record.items()]
        self._add(
            event_pb2.Event(
                wall_time=time.time(),
                step=int(record["epoch"]),
                summary=summary_pb2.Summary(value=values),
            )
        )

    def _add(self, event: Any) -> None:
        """Adds an event as TensorFlow's record files hold it: framed by checksums."""
        from tensorboardX.record_writer import masked_crc32c

        data = event.SerializeToString()
        size = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", masked_crc32c(part)) for part in (size, data))
        _write(self._file, size + next(sums) + data + next(sums))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _write(file: io.FileIO, data: bytes) -> None:
    """Writes all bytes to an unbuffered file: closing it has nothing left to write."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def read_records(folder: Path, mark: Mark) -> list[Record]:
    """Returns a stage's records up to a checkpoint's.

    Args:
        folder: of the replica.
        mark: as it was when the checkpoint was made.

    Raises:
        UserError: they are not on disk as they were written.
    """
    path = _lines_path(folder)
    try:
        with open(path, "rb") as file:
            lines = list(itertools.islice(file, mark.epochs))
    except OSError as error:
        reason = error.strerror
    else:
        if _short(hashlib.sha256(b"".join(lines))) == mark.checksum:
            return [
                {
                    name: math.nan if value is None else value
                    for name, value in json.loads(line).items()
                }
                for line in lines
            ]
        reason = f"its first {mark.epochs} lines are not what was written"
    raise UserError(
        f"{path} cannot be read: {reason}; delete its folder to train it again"
    )


def _lines_path(folder: Path) -> Path:
    return folder / "metrics.jsonl"


def _line(record: Record) -> bytes:
    # JSON has no numbers that are not finite.
    finite = {key: v if math.isfinite(v) else None for key, v in record.items()}
    return json.dumps(finite).encode() + b"\n"


def _short(content: "hashlib._Hash") -> str:
    return content.hexdigest()[:16]


def _keep(path: Path, lines: bytes) -> None:
    """Cuts a file back to lines that it begins with, or writes them alone.

    Cut in place: other processes of the run may be reading the lines that stay.
    """
    try:
        with open(path, "r+b") as file:
            if file.read(len(lines)) == lines:
                file.truncate(len(lines))
                return
    except FileNotFoundError:
        pass
    # Earlier versions kept the records in the checkpoint alone.
    with replace_whole(path) as temporary:
        temporary.write_bytes(lines)
