"""The bank's plan: whose targets are stored, for which stages, and how large that is.

A plan depends on the experiment alone, not on what is trained already: a run that was
killed and started again reads the same teachers from the bank as one that was not.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

import jax

from kdjax.experiment.config import Experiment
from kdjax.experiment.predictions import is_table
from kdjax.experiment.stage import Stage
from kdjax.train import rounding
from kdjax.train.step import Step

Reader = tuple[str, int, str]
"""Who reads an entry: stage, seed and teacher."""


@dataclasses.dataclass(frozen=True)
class BankEntry:
    """The targets of one replica of a teacher over one stream of images.

    Attributes:
        teacher: its stage.
        replica: its seed.
        stream: the seed of the stream, None if images look the same in every epoch:
            then one entry serves all epochs and seeds.
        target_id: identifies how the targets are computed from the teacher's outputs.
    """

    teacher: str
    replica: int
    stream: int | None
    target_id: str

    def stored_epoch(self, epoch: int) -> int:
        """Returns which of the entry's epochs holds the targets of an epoch."""
        return 0 if self.stream is None else epoch


@dataclasses.dataclass(frozen=True)
class Plan:
    """Who reads what from the bank.

    Attributes:
        banked: by stage, the teachers whose targets are there before the step: read
            from the bank, or made of given predictions.
        entries: the entry that (stage, seed, teacher) reads.
        epochs: by entry, how many epochs are stored.
        bytes_per_epoch: by entry.
        too_large: teachers that are computed in the step because of the limit.
        uncacheable: stages whose teachers must run in the step.
    """

    banked: Mapping[str, tuple[str, ...]]
    entries: Mapping[Reader, BankEntry]
    epochs: Mapping[BankEntry, int]
    bytes_per_epoch: Mapping[BankEntry, int]
    too_large: tuple[str, ...]
    uncacheable: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the largest stream: seeds are trained one after another."""
        sizes: Counter[int | None] = Counter()
        for entry, width in self.bytes_per_epoch.items():
            sizes[entry.stream] += self.epochs[entry] * width
        return max(sizes.values(), default=0)

    def passes(self, experiment: Experiment) -> int:
        """Returns the teachers' passes over the training images, counted in epochs."""
        return sum(self.epochs.values()) + sum(
            stage.epochs * stage.seeds
            for name, stage in experiment.stages.items()
            for teacher in stage.teachers
            if teacher not in self.banked[name]
        )


def why_uncacheable(stage: Stage) -> str | None:
    """Returns why a stage needs its teachers in the step, or None if it does not."""
    if rounding.needs_teachers(stage.method, mixup=0):
        return f"learns by {stage.method_name}, which needs its teachers in the step"
    if stage.teachers and rounding.needs_teachers(stage.method, stage.recipe.mixup):
        return (
            f"blends its images (recipe.mixup={stage.recipe.mixup:g}): its teachers "
            "see them in the step"
        )
    return None


def without_bank(experiment: Experiment) -> int:
    """Returns the passes of `Plan.passes` when every teacher runs in the step."""
    return sum(
        stage.epochs * stage.seeds * len(stage.teachers)
        for stage in experiment.stages.values()
    )


def plan(experiment: Experiment, steps: Mapping[str, Step], size: int) -> Plan:
    """Returns the plan of an experiment.

    A teacher is banked where an entry is read more than once: by several stages or, if
    images are not augmented, in several epochs.

    Args:
        experiment: the graph of stages and the bank's settings.
        steps: every stage's step.
        size: the number of training images.
    """
    stages = experiment.stages
    candidates = _Candidates()
    uncacheable = []
    for name, stage in stages.items():
        if not experiment.bank.use:
            break
        if why_uncacheable(stage):
            uncacheable.append(name)
        else:
            candidates.add_stage(experiment, name, steps[name], size)
    kept, too_large = candidates.within(experiment.bank.max_gb * 1e9, stages)
    shared = candidates.shared()
    banked = {
        name: tuple(
            teacher
            for teacher in stage.teachers
            if is_table(stages[teacher].given)
            or (teacher in kept and (name, teacher) in shared)
        )
        for name, stage in stages.items()
    }
    entries = {
        reader: entry
        for reader, entry in candidates.entries.items()
        if reader[2] in banked[reader[0]]
    }
    used = set(entries.values())
    return Plan(
        banked=banked,
        entries=entries,
        epochs={e: n for e, n in candidates.epochs.items() if e in used},
        bytes_per_epoch={e: n for e, n in candidates.widths.items() if e in used},
        too_large=too_large,
        uncacheable=tuple(uncacheable),
    )


@dataclasses.dataclass
class _Candidates:
    """Entries that could be banked, before it is known which are worth it.

    Attributes:
        entries: by who reads them.
        num_reads: by entry, how often it would be read: once by a stage whose images
            are augmented, else in every epoch, counted as two.
        epochs: by entry, how many would be stored.
        widths: by entry, bytes of one epoch.
    """

    entries: dict[Reader, BankEntry] = dataclasses.field(default_factory=dict)
    num_reads: Counter[BankEntry] = dataclasses.field(default_factory=Counter)
    epochs: dict[BankEntry, int] = dataclasses.field(default_factory=dict)
    widths: dict[BankEntry, int] = dataclasses.field(default_factory=dict)

    def add_stage(
        self, experiment: Experiment, name: str, step: Step, size: int
    ) -> None:
        """Adds what one stage would read of its teachers."""
        varies, stage = experiment.augment.varies, experiment.stages[name]
        for teacher in stage.teachers:
            width = _bytes_per_example(step, teacher)
            # Predictions are in memory already: nothing is stored for them.
            if not width or is_table(experiment.stages[teacher].given):
                continue
            target_id = step.target_id(teacher)
            for seed in range(stage.seeds):
                replica = seed % experiment.stages[teacher].seeds
                stream = seed if varies else None
                entry = BankEntry(teacher, replica, stream, target_id)
                self.entries[name, seed, teacher] = entry
                self.num_reads[entry] += 1 if varies else 2
                epochs = stage.epochs if varies else 1
                self.epochs[entry] = max(self.epochs.get(entry, 0), epochs)
                self.widths[entry] = width * size

    def shared(self) -> set[tuple[str, str]]:
        """Returns the stages and teachers whose entries are read more than once."""
        return {
            (name, teacher)
            for (name, _, teacher), entry in self.entries.items()
            if self.num_reads[entry] > 1
        }

    def within(
        self, limit: float, stages: Mapping[str, object]
    ) -> tuple[set[str], tuple[str, ...]]:
        """Returns the teachers that fit into so many bytes, and those that do not.

        They are taken in the order of the stages; what is too large is passed over.
        """
        kept, too_large, shared = set(), [], self.shared()
        sizes: Counter[int | None] = Counter()
        for candidate in stages:
            cost = sizes.copy()
            for entry in {
                entry
                for (name, _, teacher), entry in self.entries.items()
                if teacher == candidate and (name, teacher) in shared
            }:
                cost[entry.stream] += self.epochs[entry] * self.widths[entry]
            if max(cost.values(), default=0) > limit:
                too_large.append(candidate)
            else:
                kept.add(candidate)
                sizes = cost
        return kept, tuple(too_large)


def _bytes_per_example(step: Step, teacher: str) -> int:
    """Returns the bytes of one example as it is stored."""
    leaves = jax.tree.leaves(step.target_specs[teacher])
    width = rounding.stored_dtype(step.dtype).itemsize
    return sum(width * math.prod(leaf.shape[1:]) for leaf in leaves)
