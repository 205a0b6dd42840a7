"""Which values a hyper-parameter may take, declared in the annotation of its field.

    temperature: Positive = 4.0
    form: Literal["weighted", "added"] = "weighted"

The default stays a plain value, which tells the option's type (`settings.build`), and
mypy knows the choices. `Method` checks all fields when it is made; a rule that ties two
fields together stays in the `__post_init__` of the method that has it.
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
        above: the lower bound, which is not permitted itself.
        least: the lower bound, which is.
        most: the upper bound, which is.
    """

    above: float = -math.inf
    least: float = -math.inf
    most: float = math.inf

    def problem(self, value: float) -> str | None:
        """Returns what is wrong with a number, such as 'is not positive', or None."""
        # Asked in this form, a NaN is outside too.
        if self.above < value and self.least <= value <= self.most:
            return None
        if self.most < math.inf:
            if self.above >= self.least:
                return f"is outside ({self.above:g}, {self.most:g}]"
            return f"is outside {self.least:g}..{self.most:g}"
        if self.above >= self.least:
            return f"is not above {self.above:g}" if self.above else "is not positive"
        return f"is below {self.least:g}" if self.least else "is negative"


@dataclasses.dataclass(frozen=True)
class Entries:
    """Tuples of names that are long enough.

    Attributes:
        least: how many entries they have at least; a name with a `*` may stand for any
            number of them.
    """

    least: int = 1

    def problem(self, value: Collection[str]) -> str | None:
        """Returns what is wrong with a tuple, or None."""
        if not all(isinstance(entry, str) for entry in value):
            return "are not all names"
        if len(value) >= self.least or any("*" in entry for entry in value):
            return None
        return f"are too few; it wants {self.least} or more"


Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(least=0, most=1)]
Lambda = Annotated[float, Range(least=0, most=1), "lambda"]
"""A share that the papers and the configs' arguments call lambda: errors name both."""
Count = Annotated[int, Range(above=0)]
Steps = Annotated[int, Range(least=0)]
Levels = Annotated[tuple[str, ...], Entries(1)]
"""Names of features, one or more."""
LevelPairs = Annotated[tuple[str, ...], Entries(2)]
"""Names of features whose neighbours are compared: two or more."""
TeacherLevels = Annotated[tuple[str, ...], Entries(0)]
"""Names of the teacher's features where they differ, as many as the student's."""


def check(name: str, method: object) -> None:
    """Checks the fields of a dataclass against their annotations.

    Args:
        name: what the object is called in errors.
        method: the object.

    Raises:
        UserError: a value is out of its range or none of its choices; the message
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
            # `Annotated` may hold other things, which are none of ours.
            known = isinstance(rule, Range | Entries)
            if known and (problem := rule.problem(value)):
                raise UserError(f"{name}: {field}{symbols} {value} {problem}")


@functools.cache
def _declared(cls: type) -> dict[str, object]:
    """Returns the annotations of a dataclass's fields, `Annotated` ones as they are."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}
