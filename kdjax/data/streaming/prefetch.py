"""Prefetches batches with Grain, in other processes or in threads."""

import atexit
import gc
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np
from absl import flags

from kdjax.runtime import private_names
from kdjax.runtime.closing import Closing
from kdjax.runtime.errors import UserError

Made = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[tuple[str, str], ...]]
"""Three arrays of a batch, and its broken records with the reasons."""

T = TypeVar("T")

THREADS = 2  # in place of worker processes: PIL decodes and scales without the GIL
_running: "weakref.WeakSet[Batches]" = weakref.WeakSet()


class Batches(Closing, Iterator[T], Generic[T]):
    """An iterator over prefetched batches; `close` ends its workers.

    The workers start with the first call of `next`; each is at most three batches
    ahead.
    """

    def __init__(
        self,
        make: Callable[[np.ndarray], Made],
        rows: np.ndarray,
        workers: int,
        finish: Callable[[Made], T],
    ):
        """Makes the iterator; the workers start later.

        Args:
            make: makes a batch of one row; it is pickled to the workers.
            rows: `[batches, ...]`.
            workers: the number of processes; 0: threads of this process.
            finish: turns a batch into the iterator's result, in this process.
        """
        import grain  # half a second: not for `import kdjax`

        # Grain reads its flags whether or not absl has parsed the command line.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = grain.MapDataset.source(rows).map(make)
        if workers and len(rows):
            batches = dataset.to_iter_dataset(
                # What a worker has ready waits in its queue, not in threads.
                grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            ).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=min(workers, len(rows))),
                worker_init_fn=_start_worker,
            )
        else:
            batches = dataset.to_iter_dataset(
                grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS + 1)
            )
        self._finish = finish
        self._iterator = iter(batches)
        _running.add(self)
        # At exit the last function registered runs first: this one before the clean-up
        # of multiprocessing, which Grain has imported. Grain's iterators must be closed
        # before modules are unloaded.
        atexit.unregister(_close_all)
        atexit.register(_close_all)

    def __next__(self) -> T:
        """Returns the next batch.

        Raises:
            UserError: a worker has died. Errors of `make` and `finish` are raised, too.
        """
        if self._iterator is None:
            raise StopIteration
        try:
            *arrays, broken = next(self._iterator)
            # Copies: the memory shared with a worker is released at once, so that
            # none is left when the program ends.
            first, second, third = map(np.array, arrays)
            return self._finish((first, second, third, broken))
        except RuntimeError as error:
            self.close()
            if not private_names.is_about_a_dead_worker(error):
                raise
            raise UserError(
                "a process that reads data has died: too little memory, or the main "
                "program lacks `if __name__ == '__main__':`; take fewer workers, which "
                "need less memory, or workers=0"
            ) from error
        except BaseException:  # the end of the data is one
            self.close()
            raise

    def close(self) -> None:
        """Ends the workers and the iteration."""
        if self._iterator is not None:
            iterator, self._iterator = self._iterator, None
            iterator.close()
            del iterator
            _free_shared_memory()


def _free_shared_memory() -> None:
    """Releases the memory shared with workers that have ended.

    Grain's threads keep each worker's last batch in a reference cycle of an exception
    and its frame, and Python warns of shared memory that is left when a program ends.
    """
    gc.collect()
    private_names.free_memory_of_ended_workers()


def _close_all() -> None:
    """Ends all workers that are left when the program ends."""
    for batches in list(_running):
        batches.close()


def _start_worker(index: int, count: int) -> None:
    """Makes a worker process end only when its parent stops it or dies."""
    # A signal to the whole group, as from Ctrl-C or Slurm, is handled by the parent: it
    # finishes a step with the workers' help, saves, and closes them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
