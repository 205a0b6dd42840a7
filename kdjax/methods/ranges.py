"""The valid values of a hyper-parameter, declared in the annotation of its field.

    temperature: Positive = 4.0
    form: Literal["weighted", "added"] = "weighted"

The default stays a plain value, from which `settings.build` takes the option's type,
and mypy knows the choices. `Method` checks all fields when it is constructed; a rule
about two fields together stays in the `__post_init__` of its method.
"""

import dataclasses
import functools
import math
from collections.abc import Collection
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from kdjax.runtime.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers within bounds.

    Attributes:
        above: an exclusive lower bound.
        least: an inclusive lower bound.
        most: an inclusive upper bound.
    """

    above: float = -math.inf
    least: float = -math.inf
    most: float = math.inf

    def problem(self, value: float) -> str | None:
        """Returns what is wrong with a number, such as 'is not positive', or None."""
        # Written in this form, the condition is false for NaN as well.
        if self.above < value and self.least <= value <= self.most:
            return None
        if self.most < math.inf:
            if self.above >= self.least:
                return f"is outside ({_text(self.above)}, {_text(self.most)}]"
            return f"is outside {_text(self.least)}..{_text(self.most)}"
        if self.above >= self.least:
            return f"is not above {self.above:g}" if self.above else "is not positive"
        return f"is below {self.least:g}" if self.least else "is negative"


def _text(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


@dataclasses.dataclass(frozen=True)
class Entries:
    """Tuples of names with a smallest length.

    Attributes:
        least: the smallest number of entries; a name with a `*` may be replaced by any
            number of names.
    """

    least: int = 1

    def problem(self, value: Collection[str]) -> str | None:
        """Returns what is wrong with a tuple, or None."""
        if not all(isinstance(entry, str) for entry in value):
            return "are not all names"
        if len(value) >= self.least or any("*" in entry for entry in value):
            return None
        return f"are too few; choices: {self.least} or more"


Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(least=0, most=1)]
Lambda = Annotated[float, Range(least=0, most=1), "lambda"]
"""A share that the papers and the configs' arguments call lambda: errors name both."""
Count = Annotated[int, Range(least=1, most=1_000_000)]
"""A number of things, all of which are computed: more than a million are a mistake."""
Steps = Annotated[int, Range(least=0, most=2**31 - 1)]
"""A number of the step, which the train state counts in 32 bits."""
Levels = Annotated[tuple[str, ...], Entries(1)]
"""Names of features, one or more."""
LevelPairs = Annotated[tuple[str, ...], Entries(2)]
"""Names of features whose neighbours are compared: two or more."""
TeacherLevels = Annotated[tuple[str, ...], Entries(0)]
"""Names of the teacher's features if they differ from the student's; equally many."""


def check(name: str, method: object) -> None:
    """Checks the fields of a dataclass against their annotations.

    Args:
        name: the method's, for error messages.
        method: the object.

    Raises:
        UserError: a value is out of its range or not among its choices; the message
            names the field, the value and what is permitted.
    """
    cls: type = type(method)
    for field, hint in _declared(cls).items():
        value = getattr(method, field)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise unknown(f"{field} of {name}", value, get_args(hint))
        rules = getattr(hint, "__metadata__", ())
        symbols = "".join(f" ({rule})" for rule in rules if isinstance(rule, str))
        for rule in rules:
            # `Annotated` may hold metadata of other libraries.
            known = isinstance(rule, Range | Entries)
            if known and (problem := rule.problem(value)):
                raise UserError(f"{name}: {field}{symbols} {value} {problem}")


@functools.cache
def _declared(cls: type) -> dict[str, object]:
    """Returns the annotations of a dataclass's fields, `Annotated` ones as they are."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}
