"""Matches state dicts to networks, and names the differences."""

import dataclasses
from collections.abc import Iterable

from kdjax import models
from kdjax.models.import_torch.describe import describe
from kdjax.models.import_torch.layout import Guess, Layout, Shapes
from kdjax.models.import_torch.layouts import LAYOUTS
from kdjax.models.import_torch.mapping import Row, table
from kdjax.runtime.errors import UserError, unknown

_LISTED = 3  # keys of each kind in an error


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """The differences between a state dict and a network.

    Attributes:
        missing: keys of the network that the state dict lacks.
        extra: keys that the network does not have.
        misshapen: keys whose shapes differ, with both shapes.
    """

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.misshapen)

    def __str__(self) -> str:
        parts = (
            ("missing", self.missing),
            ("not expected", self.extra),
            ("of another shape", self.misshapen),
        )
        return "; ".join(f"{what}: {_first(keys)}" for what, keys in parts if keys)


def _first(keys: tuple[str, ...]) -> str:
    rest = len(keys) - _LISTED
    return ", ".join(keys[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def compare(rows: Iterable[Row], shapes: Shapes) -> Mismatch:
    """Returns the differences between a mapping and a state dict."""
    expected = {row.key: row.shape for row in rows}
    return Mismatch(
        tuple(key for key in expected if key not in shapes),
        tuple(key for key in shapes if key not in expected),
        tuple(
            f"{key} {list(shapes[key])}, not {list(shape)}"
            for key, shape in expected.items()
            if key in shapes and tuple(shapes[key]) != shape
        ),
    )


def layouts_of(model: str) -> tuple[Layout, ...]:
    """Returns the layouts of a network's family.

    Raises:
        UserError: there is no such network, or no layout is known for its family.
    """
    models.version(model)  # refuses an unknown family
    family = model.split("-")[0]
    layouts = tuple(layout for layout in LAYOUTS if layout.family == family)
    if not layouts:
        families = dict.fromkeys(layout.family for layout in LAYOUTS)
        raise unknown("model to import from PyTorch", model, families)
    return layouts


def guesses(shapes: Shapes) -> dict[Layout, Guess]:
    """Returns the networks that have exactly these tensors, by layout."""
    found = {}
    for layout in LAYOUTS:
        guess = layout.guess(shapes)
        if guess is None:
            continue
        try:
            rows = table(
                layout.prefix, guess.model, guess.num_classes, guess.image_shape
            )
        except UserError:
            continue  # such as a depth or width that the family does not have
        if not compare(rows, shapes):
            found[layout] = guess
    return found


def fitting(
    shapes: Shapes,
    model: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    what: str,
) -> tuple[Layout, tuple[Row, ...]]:
    """Returns the layout of a state dict that holds a network, and the mapping.

    Args:
        shapes: of the tensors, by key.
        model: the network's name.
        num_classes: the number of classes.
        image_shape: height, width and channels.
        what: the file's name for the error message.

    Raises:
        UserError: it is another network; the message describes it and lists the first
            keys that differ.
    """
    closest = None
    for layout in layouts_of(model):
        rows = table(layout.prefix, model, num_classes, image_shape)
        mismatch = compare(rows, shapes)
        if not mismatch:
            return layout, rows
        if closest is None or len(mismatch) < len(closest[1]):
            closest = layout, mismatch
    assert closest is not None
    layout, mismatch = closest
    raise UserError(
        f"{what} is not {model} with {num_classes} classes: {seems(shapes)}; "
        f"by the names of {layout.name}, {mismatch}"
    )


def seems(shapes: Shapes) -> str:
    """Returns a description of a state dict from its tensors."""
    for guess in guesses(shapes).values():
        return f"it looks like {guess}"
    return describe(shapes)
