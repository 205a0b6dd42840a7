"""What seeds tell: their spread, and whether two methods differ."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from kdjax.report.runs import Run, Stage

FEWEST = 3
"""Seeds below which no difference is claimed."""

LEVEL = 0.05
"""The corrected p-value below which a difference counts as told."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Figures of several seeds.

    Attributes:
        each: by seed.
        median: of them.
        mean: of them.
        std: the sample's standard deviation; None of a single seed.
    """

    each: tuple[float, ...]
    median: float
    mean: float
    std: float | None


def spread(values: Sequence[float]) -> Spread:
    """Returns median, mean and standard deviation of at least one value."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(tuple(values), float(np.median(values)), float(np.mean(values)), std)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One stage's accuracy less another's, seed by seed, in per cent.

    Attributes:
        first: the name of the stage with the higher mean.
        second: of the other one.
        each: the difference of every seed that both have.
        mean: of the differences.
        margin: half of the 95 % confidence interval's width, by Student's t.
        p: of the paired t-test, two-sided.
        corrected: p after Holm's correction for all pairs of its group.
    """

    first: str
    second: str
    each: tuple[float, ...]
    mean: float
    margin: float
    p: float
    corrected: float

    @property
    def told(self) -> bool:
        """Whether the seeds tell the two apart."""
        return self.corrected < LEVEL


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """Returns margin and p-value of Student's paired t-test.

    Args:
        differences: of at least two seeds.

    Returns:
        Half the width of the mean's 95 % confidence interval; and the probability of
        a mean at least as far from 0 if there were no difference.
    """
    from scipy import stats

    values = np.asarray(differences, np.float64)
    count, mean = len(values), values.mean()
    error = values.std(ddof=1) / math.sqrt(count)
    margin = float(stats.t.ppf(0.975, count - 1) * error)
    if error <= 1e-12 * max(1.0, abs(mean)):  # all alike: the test has no spread
        return margin, 1.0 if abs(mean) <= 1e-12 else 0.0
    return margin, float(2 * stats.t.sf(abs(mean) / error, count - 1))


def holm(values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number, by Holm's step-down rule.

    Reference:
        Holm, *A simple sequentially rejective multiple test procedure*, 1979.
    """
    corrected, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(np.argsort(values, kind="stable")):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected


def differences(run: Run) -> dict[str, list[Difference]]:
    """Returns all pairs that a run can compare, in groups of one network.

    Stages are compared that train the same model on the same images for as many
    epochs, and share at least `FEWEST` seeds. Replicas of one seed start alike and see
    the same images in the same order, so they are paired.

    Returns:
        By what the group's stages share, the pairs; the clearest difference first.
    """
    groups: dict[str, list[Stage]] = {}
    for stage in run.stages.values():
        if len(stage.seeds) >= FEWEST and stage.epochs:
            shared = (
                f"{stage.student.model} on {stage.train_images:,} images of "
                f"{stage.dataset}, {stage.epochs} epochs"
            )
            groups.setdefault(shared, []).append(stage)
    found = {}
    for shared, stages in groups.items():
        pairs = [_pair(*two) for two in itertools.combinations(stages, 2)]
        known = [pair for pair in pairs if pair is not None]
        corrected = holm([pair.p for pair in known])
        known = [
            dataclasses.replace(pair, corrected=p)
            for pair, p in zip(known, corrected, strict=True)
        ]
        if known:
            found[shared] = sorted(known, key=lambda pair: (pair.p, -pair.mean))
    return found


def _pair(one: Stage, other: Stage) -> Difference | None:
    common = [seed for seed in one.seeds if seed in other.seeds]
    if len(common) < FEWEST:
        return None
    by_seed = [
        dict(zip(stage.seeds, stage.student.accuracy, strict=True))
        for stage in (one, other)
    ]
    each = [100 * (by_seed[0][seed] - by_seed[1][seed]) for seed in common]
    if np.mean(each) < 0:
        one, other, each = other, one, [-value for value in each]
    margin, p = paired(each)
    return Difference(
        one.name, other.name, tuple(each), float(np.mean(each)), margin, p, p
    )


def what_seeds_tell(count: int) -> str:
    """Returns what a paired test of so many seeds can and cannot tell."""
    least = 2 / 2**count
    factor = _least_factor(count)
    return (
        f"With {count} seeds the t-test has {count - 1} degrees of freedom: at the "
        "95 % level it finds a mean difference only if that is at least "
        f"{factor:.1f} times the standard deviation of the differences, and it assumes "
        "that the differences are normally distributed. Without this assumption no "
        f"test of {count} pairs can give a p below {least:.2g} (all differences of one "
        "sign). All seeds share the test images, so the spread does not include their "
        "choice."
    )


def _least_factor(count: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.975, count - 1)) / math.sqrt(count)
