"""Checkpoints by orbax, with a digest of the content and readable metadata.

Orbax writes atomically, so that a half-written checkpoint is never seen; it has no
checksum, so that a flipped byte would be. The digest sees it.
"""

import contextlib
import functools
import gc
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from kdjax.runtime import disk, parallel
from kdjax.runtime.closing import Closing
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import digest

# Orbax logs, with tracebacks, what it raises as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def _seal(tree: Any, meta: dict[str, Any]) -> str:
    """Returns the digest of a checkpoint's arrays and JSON values."""
    return digest((jax.device_get(tree), json.dumps(meta, sort_keys=True)))


_PATIENCE = 1.0  # seconds for reads that a failure leaves under way


@contextlib.contextmanager
def _silent_readers() -> Iterator[None]:
    """Lets orbax fail without a word on stderr.

    It abandons the other arrays' coroutines; each would print a traceback of its own
    when it is collected.
    """
    hooks = sys.unraisablehook, sys.excepthook
    sys.unraisablehook, sys.excepthook = lambda _: None, lambda *_: None
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = hooks


@functools.cache
def _ignore_late_writes() -> None:
    """Lets writes that a failed one leaves under way end without a word on stderr.

    They report to an event loop that orbax has closed by then, each with a traceback of
    its own; the failure itself is raised.
    """
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _check_shape(
    path: jax.tree_util.KeyPath, target: np.ndarray, restored: np.ndarray
) -> None:
    """Raises ValueError where orbax read an array as it was, not as it should be."""
    if target.shape != restored.shape:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ValueError(f"{name} has shape {restored.shape}, not {target.shape}")


class Checkpoints(Closing):
    """The checkpoints in one folder: the latest ones, saved in the background."""

    def __init__(self, folder: Path, keep: int = 1):
        """Opens the folder, which is made if need be.

        Args:
            folder: of the checkpoints.
            keep: how many of the latest are kept.
        """
        self._folder = folder.absolute()
        _ignore_late_writes()
        # Of several processes the first one writes: all have the same arrays. Each
        # reads for itself, so that none waits for another.
        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=own,
            active_processes={own},
            barrier_sync_key_prefix=f"process-{own}",
        )
        several = jax.process_count() > 1
        self._folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=LatestN(keep),
                cleanup_tmp_directories=parallel.is_first(),
                read_only=not parallel.is_first(),
                create=not several,
                multiprocessing_options=(
                    alone if several else ocp.options.MultiprocessingOptions()
                ),
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints, the newest last."""
        return sorted(self._manager.all_steps())

    def drop_after(self, step: int) -> None:
        """Drops the checkpoints of later steps."""
        for later in self.steps():
            if later > step and parallel.is_first():
                self._manager.delete(later)

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, meta: dict[str, Any]) -> None:
        """Saves a tree of arrays and JSON values; returns once they are copied.

        A step that is not beyond the newest is passed over.

        Raises:
            UserError: the disk is full or broken, now or since the checkpoint before.
        """
        if not parallel.is_first():
            return
        newest = self.latest()
        if newest is not None and step <= newest:
            return  # a deterministic run that repeats what is already saved
        meta = {**meta, "digest": _seal(tree, meta)}
        args = ocp.args.Composite(
            tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
        )
        with self._writing():
            saved = self._manager.save(step, args=args)
        if not saved:
            raise RuntimeError(f"orbax did not save step {step} in {self._folder}")

    def restore(
        self, shapes: Any, step: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Returns a checkpoint's tree, as NumPy arrays, and JSON values.

        Args:
            shapes: the tree's shapes and dtypes.
            step: whose checkpoint; the newest by default.

        Raises:
            UserError: the checkpoint is damaged or of another shape.
        """
        step = self.latest() if step is None else step
        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        args = ocp.args.Composite(
            tree=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        )
        reason = ""
        with _silent_readers():
            try:
                restored = self._manager.restore(step, args=args)
                tree, meta = restored.tree, restored.meta
                saved = meta.pop("digest")
                jax.tree.map_with_path(_check_shape, target, tree)
            # Whatever orbax and its storage library raise on damaged files.
            except Exception as error:
                reason = str(error).strip() or type(error).__name__
            if reason:  # not within the handler, where the error holds its frames
                gc.collect()
                # Reads that are still under way report to a closed event loop.
                time.sleep(_PATIENCE)
        if reason:
            raise self._damaged(step, reason.splitlines()[0][:200])
        if _seal(tree, meta) != saved:
            raise self._damaged(step, "its content is not what was saved")
        return tree, meta

    def _damaged(self, step: int | None, reason: str) -> UserError:
        return UserError(
            f"checkpoint {self._folder / str(step)} cannot be read: {reason}; "
            "delete its folder to train again from what is left"
        )

    def close(self) -> None:
        """Waits for the last checkpoint to be on disk.

        Raises:
            UserError: the disk is full or broken.
        """
        with self._writing():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what orbax and its storage library raise for a full disk into a line.

        They have errors of many kinds for it, at the next call after the failure; all
        tell in their text what the system said.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            number = disk.number_in("".join(traceback.format_exception(error)))
            if number is None:
                raise
            raise UserError(
                f"a checkpoint cannot be saved: {disk.line(number, self._folder)}"
            ) from error
