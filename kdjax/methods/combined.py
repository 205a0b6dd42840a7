"""Several methods as one: 'rocket+kd' is Rocket Launching with KD of an expert."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self, TypeVar

import flax.linen as nn
import jax

from kdjax.methods.base import (
    Adapted,
    Context,
    Memory,
    MemoryInit,
    Method,
    Path,
    Phase,
    Targets,
    Term,
)
from kdjax.models import Outputs, Variables
from kdjax.runtime.errors import UserError
from kdjax.runtime.rng import fold

T = TypeVar("T")


def _join(name: str, parts: list[dict]) -> dict:
    """Returns the union of dictionaries that must not share a key."""
    joined: dict = {}
    for part in parts:
        for key in part.keys() & joined.keys():
            raise UserError(f"method {name!r}: two parts have the same {key!r}")
        joined |= part
    return joined


class _PartAdapter(nn.Module):
    """An adapter of one part: it gets this part's targets and views only."""

    part: str
    adapter: nn.Module
    every: int

    def __call__(
        self,
        outputs: Mapping[str, Outputs],
        targets: Mapping[str, Targets],
        train: bool,
    ) -> Adapted:
        """Returns the outputs of the part's adapter."""
        targets = _of_part(self.part, targets)
        return self.adapter(*_every(self.every, (outputs, targets)), train)


def _of_part(name: str, targets: Mapping[str, Targets]) -> dict[str, Targets]:
    return {teacher: parts[name] for teacher, parts in targets.items() if name in parts}


def _every(every: int, tree: T) -> T:
    """Returns every n-th row: the first of n views of each image."""
    return tree if every == 1 else jax.tree.map(lambda leaf: leaf[::every], tree)


@dataclasses.dataclass(frozen=True)
class Combined(Method):
    """The first method's terms, and the others' without their cross-entropy.

    The student's cross-entropy counts once, with the first method's weight. Every part
    that has teachers is taught by the stage's teachers. The last phases of all parts
    are one phase; before it run each part's earlier phases, as if the part were alone.
    """

    methods: Mapping[str, Method]

    @property
    def name(self) -> str:
        """The parts' names joined by '+'."""
        return "+".join(self.methods)

    @property
    def num_teachers(self) -> int | None:  # type: ignore[override]
        """The number of teachers that the parts agree on."""
        numbers = {part.num_teachers for part in self.methods.values()} - {0}
        fixed = {number for number in numbers if number is not None}
        if len(fixed) > 1:
            raise UserError(
                f"method {self.name!r}: its parts take different numbers of teachers"
            )
        return fixed.pop() if fixed else None if numbers else 0

    @property
    def replays(self) -> str | None:
        """The model whose recorded training a part uses."""
        wanted = {part.replays for part in self.methods.values() if part.replays}
        if len(wanted) > 1:
            raise UserError(
                f"method {self.name!r}: two parts replay different networks"
            )
        return wanted.pop() if wanted else None

    @property
    def num_views(self) -> int:  # type: ignore[override]
        """The number of views of the one part that makes any."""
        several = [name for name, part in self.methods.items() if part.num_views > 1]
        if len(several) > 1:
            raise UserError(
                f"method {self.name!r}: {' and '.join(several)} both make views"
            )
        return self.methods[several[0]].num_views if several else 1

    @property
    def call_teachers(self) -> bool:  # type: ignore[override]
        """Whether a part runs teachers itself."""
        return any(part.call_teachers for part in self.methods.values())

    @property
    def reads_labels(self) -> bool:  # type: ignore[override]
        """Whether a part reads labels itself."""
        return any(part.reads_labels for part in self.methods.values())

    def network(self, student: str, teachers: Sequence[str]) -> str:
        """Returns the network that the parts make of the student."""
        changed = {part.network(student, teachers) for part in self.methods.values()}
        changed -= {student}
        if len(changed) > 1:
            raise UserError(f"method {self.name!r}: two parts change the network")
        return changed.pop() if changed else student

    def fit(
        self, outputs: Mapping[str, Outputs], teachers: Mapping[str, Outputs]
    ) -> Self:
        """Returns the parts with the options that depend on the networks filled in."""
        fitted = {
            name: part.fit(outputs, teachers) for name, part in self.methods.items()
        }
        return dataclasses.replace(self, methods=fitted)

    def _phases(self) -> list[tuple[str | None, int, Phase]]:
        """Returns all phases, each with its part and its number there.

        The last one belongs to all parts; its part is None.
        """
        earlier: list[tuple[str | None, int, Phase]] = []
        for name, part in self.methods.items():
            for number, phase in enumerate(part.phases()[:-1]):
                earlier.append((name, number, phase))
        last = [part.phases()[-1] for part in self.methods.values()]
        recipe = _join(self.name, [dict(phase.recipe) for phase in last])
        shared = Phase(recipe, lambda path: all(phase.trains(path) for phase in last))
        return [*earlier, (None, 0, shared)]

    def phases(self) -> tuple[Phase, ...]:
        """Returns every part's earlier phases, then the shared one."""
        return tuple(phase for _, _, phase in self._phases())

    def init_indices(self, init_index: int) -> dict[str, int]:
        """Returns the numbers that select the roles' initial weights, of all parts."""
        indices: dict[str, int] = {}
        for part in self.methods.values():
            indices |= part.init_indices(init_index)
        return indices

    def make_views(self, images: jax.Array) -> jax.Array:
        """Returns the views of the part that makes any."""
        for part in self.methods.values():
            if part.num_views > 1:
                images = part.make_views(images)
        return images

    def init_memory(self, init: MemoryInit) -> dict[str, Memory]:
        """Returns the parts' memories, by name."""
        return {
            name: part.init_memory(
                dataclasses.replace(
                    init,
                    key=fold(init.key, name),
                    targets=_of_part(name, init.targets),
                )
            )
            for name, part in self.methods.items()
        }

    def roles(self, student: str) -> dict[str, str]:
        """Returns the trained networks of all parts."""
        roles = {"student": student}
        for part in self.methods.values():
            added = part.roles(student)
            del added["student"]
            roles = _join(self.name, [roles, added])
        return roles

    def teacher_targets(self, outputs: Outputs) -> dict[str, Targets]:
        """Returns each part's targets, by its name."""
        return {
            name: part.teacher_targets(outputs)
            for name, part in self.methods.items()
            if part.num_teachers != 0
        }

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Targets]
    ) -> dict[str, nn.Module]:
        """Returns the adapters of all parts."""
        adapters = []
        for name, part in self.methods.items():
            every = self.num_views // part.num_views
            own = part.adapters(outputs, _of_part(name, targets))
            adapters.append(
                {
                    key: _PartAdapter(name, adapter, every)
                    for key, adapter in own.items()
                }
            )
        return _join(self.name, adapters)

    def initial(
        self, variables: dict[str, Variables], frozen: Mapping[str, Variables]
    ) -> dict[str, Variables]:
        """Returns the initial variables after every part has changed them in turn."""
        for part in self.methods.values():
            variables = part.initial(variables, frozen)
        return variables

    def ties(self, params: Mapping[str, Mapping]) -> dict[Path, Path]:
        """Returns the ties of all parts."""
        return _join(self.name, [part.ties(params) for part in self.methods.values()])

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the terms of all parts."""
        return self.terms_and_memory(context)[0]

    def terms_and_memory(
        self, context: Context
    ) -> tuple[dict[str, Term], dict[str, Memory]]:
        """Returns the terms of all parts and their memories."""
        whose, number, _ = self._phases()[context.phase]
        memory = dict(context.memory or {})
        terms: list[dict[str, Term]] = []
        for name, part in self.methods.items():
            if whose not in (None, name):
                continue
            own, memory[name] = part.terms_and_memory(
                self._context(name, context, whose, number)
            )
            # The first part's cross-entropy counts, with its weight; further ones would
            # count the labels again.
            if terms:
                own.pop("ce/student", None)
            terms.append(own)
        return _join(self.name, terms), memory

    def _context(
        self, name: str, context: Context, whose: str | None, number: int
    ) -> Context:
        """Returns one part's context: its views, phase, memory and targets."""
        part = self.methods[name]
        every = self.num_views // part.num_views
        targets = _of_part(name, context.targets)
        labels, index, outputs, targets, images = _every(
            every,
            (context.labels, context.index, context.outputs, targets, context.images),
        )
        return dataclasses.replace(
            context,
            labels=labels,
            index=index,
            outputs=outputs,
            targets=targets,
            images=images,
            phase=len(part.phases()) - 1 if whose is None else number,
            memory=(context.memory or {}).get(name),
        )
