"""Several methods as one: 'rocket+kd' is Rocket Launching with an expert's logits."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from kdjax.errors import UserError
from kdjax.methods.base import Context, Method, Path, Term
from kdjax.models import Outputs, Variables


def _join(name: str, parts: list[dict]) -> dict:
    """Returns the union of dictionaries that must not share a key."""
    joined: dict = {}
    for part in parts:
        for key in part.keys() & joined.keys():
            raise UserError(f"method {name!r}: two parts have the same {key!r}")
        joined |= part
    return joined


class _PartAdapter(nn.Module):
    """An adapter of one part: sees only what this part reads of the teachers."""

    part: str
    adapter: nn.Module

    def __call__(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any], train: bool
    ) -> Any:
        """Returns what the part's adapter does."""
        return self.adapter(outputs, _of_part(self.part, targets), train)


def _of_part(name: str, targets: Mapping[str, Any]) -> dict[str, Any]:
    return {teacher: read[name] for teacher, read in targets.items() if name in read}


@dataclasses.dataclass(frozen=True)
class Combined(Method):
    """The first method's terms, and the others' without their cross-entropy.

    The student's cross-entropy counts once, with the first method's weight. Every part
    that has teachers is taught by the stage's teachers.
    """

    parts: Mapping[str, Method]

    @property
    def name(self) -> str:
        """The parts' names joined by '+'."""
        return "+".join(self.parts)

    @property
    def num_teachers(self) -> int | None:  # type: ignore[override]
        """The number of teachers that the parts agree on."""
        numbers = {part.num_teachers for part in self.parts.values()} - {0}
        fixed = {number for number in numbers if number is not None}
        if len(fixed) > 1:
            raise UserError(
                f"method {self.name!r}: its parts take different numbers of teachers"
            )
        return fixed.pop() if fixed else None if numbers else 0

    @property
    def replays(self) -> str | None:
        """Returns the network that a part wants replayed."""
        wanted = {part.replays for part in self.parts.values() if part.replays}
        if len(wanted) > 1:
            raise UserError(
                f"method {self.name!r}: two parts replay different networks"
            )
        return wanted.pop() if wanted else None

    def roles(self, student: str) -> dict[str, str]:
        """Returns the trained networks of all parts."""
        roles = {"student": student}
        for part in self.parts.values():
            added = part.roles(student)
            del added["student"]
            roles = _join(self.name, [roles, added])
        return roles

    def read(self, outputs: Outputs) -> dict[str, Any]:
        """Returns what each part reads, by its name."""
        return {
            name: part.read(outputs)
            for name, part in self.parts.items()
            if part.num_teachers != 0
        }

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any]
    ) -> dict[str, nn.Module]:
        """Returns the adapters of all parts."""
        adapters = []
        for name, part in self.parts.items():
            own = part.adapters(outputs, _of_part(name, targets))
            adapters.append(
                {key: _PartAdapter(name, adapter) for key, adapter in own.items()}
            )
        return _join(self.name, adapters)

    def initial(
        self, variables: dict[str, Variables], frozen: Mapping[str, Variables]
    ) -> dict[str, Variables]:
        """Returns the start after every part in turn."""
        for part in self.parts.values():
            variables = part.initial(variables, frozen)
        return variables

    def ties(self, params: Mapping[str, Mapping]) -> dict[Path, Path]:
        """Returns the ties of all parts."""
        return _join(self.name, [part.ties(params) for part in self.parts.values()])

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the terms of all parts."""
        terms: list[dict[str, Term]] = []
        for name, part in self.parts.items():
            targets = _of_part(name, context.targets)
            own = part.terms(dataclasses.replace(context, targets=targets))
            if terms:
                own.pop("ce/student", None)
            terms.append(own)
        return _join(self.name, terms)
