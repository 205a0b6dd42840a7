"""Which stages of two runs belong together, and in what they differ."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdjax.report import reading, statistics
from kdjax.report.runs import Run, Stage
from kdjax.runtime.errors import UserError

# What every replica has of its own, or what says only where and by whom it was written.
_IGNORED = ("seed", "teachers", "kdjax", "packages", "classes", "data.dir")
_ABSENT = "not recorded"


@dataclasses.dataclass(frozen=True)
class Pair:
    """A stage of the one run beside that of the other.

    Attributes:
        name: what both are called; or both names, if they differ.
        one: the stage of the first run; None if it has none.
        other: that of the second run, likewise.
    """

    name: str
    one: Stage | None
    other: Stage | None

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Returns the settings that differ, by dotted name."""
        if self.one is None or self.other is None:
            return {}
        one, other = (_flat(stage.settings) for stage in (self.one, self.other))
        return {
            name: (one.get(name, _ABSENT), other.get(name, _ABSENT))
            for name in dict.fromkeys((*one, *other))
            if one.get(name, _ABSENT) != other.get(name, _ABSENT)
        }

    def paired(self) -> tuple[float, float, float, int] | None:
        """Returns the mean difference, second less first, in per cent.

        Returns:
            Mean, half of its 95 % confidence interval, the p-value of the paired t-test
            and the number of seeds; None if fewer than `statistics.FEWEST` are shared.
        """
        if self.one is None or self.other is None:
            return None
        by_seed = [
            dict(zip(stage.seeds, stage.student.accuracy, strict=True))
            for stage in (self.one, self.other)
        ]
        common = [seed for seed in by_seed[0] if seed in by_seed[1]]
        if len(common) < statistics.FEWEST:
            return None
        each = [100 * (by_seed[1][seed] - by_seed[0][seed]) for seed in common]
        margin, p = statistics.paired(each)
        return sum(each) / len(each), margin, p, len(each)


def read(path: Path) -> Run:
    """Returns the one run at a path.

    Raises:
        UserError: there is none, or several.
    """
    runs, _ = reading.read([path])
    if len(runs) > 1:
        raise UserError(f"{path} holds {len(runs)} runs; name the file of one of them")
    return runs[0]


def match(one: Run, other: Run) -> list[Pair]:
    """Returns the stages of two runs in pairs, then those that only one of them has.

    Stages of one name belong together; then those that have the same way of teaching
    and the same path of models, whatever they are called.
    """
    left = dict(other.stages)
    pairs = []
    for name, stage in one.stages.items():
        partner = left.get(name)
        if partner is None:
            partner = next(
                (
                    found
                    for found in left.values()
                    if (found.kind, found.path) == (stage.kind, stage.path)
                    and found.name not in one.stages
                ),
                None,
            )
        if partner is not None:
            del left[partner.name]
        both = name
        if partner is not None and partner.name != name:
            both = f"{name} / {partner.name}"
        pairs.append(Pair(both, stage, partner))
    return pairs + [Pair(name, None, stage) for name, stage in left.items()]


def datasets(run: Run) -> set[str]:
    """Returns the names of the data sets that a run's networks learned from."""
    return {stage.dataset for stage in run.stages.values()}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted names, without what every replica has."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if f"{prefix}{key}" in _IGNORED:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
