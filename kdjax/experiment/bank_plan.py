"""The bank's plan: whose outputs are stored, for which stages, and how large that is.

A plan depends on the experiment alone, not on what is trained already: a run that was
killed and goes on reads the same teachers from the bank as one that was not.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

import jax

from kdjax.experiment.config import Experiment
from kdjax.train.step import Step


@dataclasses.dataclass(frozen=True)
class BankEntry:
    """What one replica of a teacher says over one stream of images.

    Attributes:
        teacher: its stage.
        replica: its seed.
        stream: the seed of the stream, None if images look the same in every epoch:
            then one table serves all epochs and seeds.
        read: identifies what is read of its outputs.
    """

    teacher: str
    replica: int
    stream: int | None
    read: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """Who reads what from the bank.

    Attributes:
        banked: by stage, the teachers that it reads from the bank.
        tables: the table that (stage, seed, teacher) reads.
        epochs: by table, how many epochs are stored.
        bytes_per_epoch: by table.
        too_large: teachers that are computed in the step because of the limit.
        uncacheable: stages whose method needs its teachers in the step.
    """

    banked: Mapping[str, tuple[str, ...]]
    tables: Mapping[tuple[str, int, str], BankEntry]
    epochs: Mapping[BankEntry, int]
    bytes_per_epoch: Mapping[BankEntry, int]
    too_large: tuple[str, ...]
    uncacheable: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the largest stream's tables: seeds are trained one after another."""
        sizes: Counter[int | None] = Counter()
        for table, width in self.bytes_per_epoch.items():
            sizes[table.stream] += self.epochs[table] * width
        return max(sizes.values(), default=0)

    def passes(self, experiment: Experiment) -> int:
        """Returns the teachers' passes over the training images, counted in epochs."""
        return sum(self.epochs.values()) + sum(
            stage.epochs * stage.seeds
            for name, stage in experiment.stages.items()
            for teacher in stage.teachers
            if teacher not in self.banked[name]
        )


def without_bank(experiment: Experiment) -> int:
    """Returns the passes of `Plan.passes` when every teacher runs in the step."""
    return sum(
        stage.epochs * stage.seeds * len(stage.teachers)
        for stage in experiment.stages.values()
    )


def plan(experiment: Experiment, steps: Mapping[str, Step], size: int) -> Plan:
    """Returns the plan of an experiment.

    A teacher is banked where a table is read more than once: by several stages or, if
    images are not varied, in several epochs.

    Args:
        experiment: the graph of stages and the bank's settings.
        steps: every stage's step.
        size: the number of training images.
    """
    varies, stages = experiment.augment.varies, experiment.stages
    tables: dict[tuple[str, int, str], BankEntry] = {}
    uses: dict[BankEntry, int] = {}
    epochs: dict[BankEntry, int] = {}
    widths: dict[BankEntry, int] = {}
    uncacheable = []
    for name, stage in stages.items():
        if not experiment.bank.use:
            break
        if stage.method.num_views > 1 or stage.method.call_teachers:
            uncacheable.append(name)
            continue
        for teacher in stage.teachers:
            width = _bytes_per_example(steps[name], teacher)
            if not width:
                continue
            read = steps[name].target_id(teacher)
            for seed in range(stage.seeds):
                replica = seed % stages[teacher].seeds
                table = BankEntry(teacher, replica, seed if varies else None, read)
                tables[name, seed, teacher] = table
                uses[table] = uses.get(table, 0) + (1 if varies else 2)
                wanted = stage.epochs if varies else 1
                epochs[table] = max(epochs.get(table, 0), wanted)
                widths[table] = width * size
    worth = {(name, teacher) for (name, _, teacher), t in tables.items() if uses[t] > 1}
    kept, too_large = set(), []
    sizes: Counter[int | None] = Counter()
    for candidate in stages:
        cost = sizes.copy()
        for table in {
            table
            for (name, _, teacher), table in tables.items()
            if teacher == candidate and (name, teacher) in worth
        }:
            cost[table.stream] += epochs[table] * widths[table]
        if max(cost.values(), default=0) > experiment.bank.max_gb * 1e9:
            too_large.append(candidate)
        else:
            kept.add(candidate)
            sizes = cost
    banked = {
        name: tuple(
            teacher
            for teacher in stage.teachers
            if teacher in kept and (name, teacher) in worth
        )
        for name, stage in stages.items()
    }
    tables = {key: table for key, table in tables.items() if key[2] in banked[key[0]]}
    used = set(tables.values())
    return Plan(
        banked=banked,
        tables=tables,
        epochs={table: epochs[table] for table in epochs if table in used},
        bytes_per_epoch={table: widths[table] for table in widths if table in used},
        too_large=tuple(too_large),
        uncacheable=tuple(uncacheable),
    )


def _bytes_per_example(step: Step, teacher: str) -> int:
    """Returns the bytes of one example in float16."""
    leaves = jax.tree.leaves(step.target_specs[teacher])
    return sum(2 * math.prod(leaf.shape[1:]) for leaf in leaves)
