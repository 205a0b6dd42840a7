"""A report of finished runs, as one page: python -m kdjax.report WORKDIR... --out DIR.

    python -m kdjax.report runs/tables runs/dgkd --out report/
    python -m kdjax.report docs/results --out report/

Opens without network: `report/index.html` and `report/pictures/`. Every table of the
two papers of which a run has a row, ours beside the paper's; figures as in the papers;
and what neither has: fidelity, calibration, confusion, parameters against accuracy.

A working folder is read stage by stage, whichever command trained it. A file such as
`results.json`, or a folder of such files, gives tables and what can be drawn from them
alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kdjax.runtime import command


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m kdjax.report",
        description="One page of tables and figures of finished runs.",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="WORKDIR",
        help="a working folder, a results.json, or a folder of such files",
    )
    parser.add_argument("--out", type=Path, required=True, help="the page's folder")
    parser.add_argument(
        "--no-networks",
        action="store_true",
        help="leave out what needs the trained networks and the test images",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="where the data sets, or your own images, are now (default: where the "
        "experiments found them)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    # Imported late, so that wrong arguments fail fast.
    from kdjax.report import making
    from kdjax.runtime import backend

    if not options.no_networks:
        backend.use_compilation_cache()
    making.make(
        options.runs,
        options.out,
        networks=not options.no_networks,
        data_dir=options.data_dir,
    )


if __name__ == "__main__":
    sys.exit(main())
