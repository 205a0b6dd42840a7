"""Compares two finished runs stage by stage: python -m kdjax.compare A B.

    python -m kdjax.compare runs/one runs/two

A and B are working folders or files such as `results.json`. Printed are the accuracies
of all seeds, the settings in which two stages differ, and, where both have three seeds
in common or more, the mean difference with a paired t-test.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kdjax.runtime import command
from kdjax.runtime.errors import UserError


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m kdjax.compare",
        description="Two finished runs, stage by stage.",
    )
    parser.add_argument("one", type=Path, metavar="A", help="a working folder or file")
    parser.add_argument("other", type=Path, metavar="B", help="likewise")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    # Imported late, so that wrong arguments fail fast.
    from kdjax.compare import printing, stages

    one, other = stages.read(options.one), stages.read(options.other)
    sides = [stages.datasets(run) for run in (one, other)]
    if not sides[0] & sides[1]:
        names = [", ".join(sorted(side)) for side in sides]
        raise UserError(
            f"{options.one} learned {names[0]} and {options.other} {names[1]}: runs of "
            "other data sets cannot be compared"
        )
    printing.show(one, other, stages.match(one, other))


if __name__ == "__main__":
    sys.exit(main())
