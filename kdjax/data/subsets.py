"""Fixed subsets of a data set, in which classes are as frequent as in the whole."""

import numpy as np

from kdjax.runtime.errors import UserError

_SEED = 20200702  # must never change: it determines the images of a subset


def check_size(size: int, total: int, what: str) -> None:
    """Raises UserError unless a subset of that size exists.

    Args:
        size: of the subset.
        total: of the whole.
        what: the option's name, for the message.
    """
    if not 1 <= size <= total:
        raise UserError(f"{what} must be from 1 to {total}, not {size}")


def check_held(size: int, total: int, what: str) -> None:
    """Raises UserError unless a part can be held out with a non-empty rest."""
    if not 1 <= size < total:
        raise UserError(f"{what} must be from 1 to {total - 1}, not {size}")


def stratified(labels: np.ndarray, size: int) -> np.ndarray:
    """Returns the first `size` positions of a fixed order with balanced beginnings.

    Among the first k positions, a class has k * (its share of the data set) images, up
    to a difference below one. This gives the j-th image of a class an earliest and a
    latest position. Every position is filled by the class that is due first (Steiner
    and Yeomans, 1993, show that this always succeeds).

    Args:
        labels: [N].
        size: at most N.
    """
    # Raw bits, because NumPy promises only them to be the same in every version.
    keys = np.random.PCG64(_SEED).random_raw(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    members = [np.flatnonzero(labels == label) for label in classes]
    # A fixed random order within each class.
    members = [positions[np.argsort(keys[positions])] for positions in members]
    taken = np.zeros_like(counts)
    released = np.zeros_like(counts)  # the earliest rank of each class's next image
    due = -(-len(labels) // counts)  # and the first rank that is too late: rounded up
    order = np.empty(size, np.int64)
    for rank in range(size):
        # Classes whose next image may not come yet are skipped.
        chosen = np.argmin(np.where(released <= rank, due, len(labels) + 1))
        order[rank] = members[chosen][taken[chosen]]
        taken[chosen] += 1
        released[chosen] = taken[chosen] * len(labels) // counts[chosen]
        due[chosen] = -(-(taken[chosen] + 1) * len(labels) // counts[chosen])
    return order
