"""Analyses the networks of a finished experiment: python -m kdjax.analysis WORKDIR.

    python -m kdjax.analysis runs/dgkd

For every network and each network before it on its chain, `results.json` gets the error
overlap of DGKD's Figure 4: of the smaller network's errors, the share that the larger
one makes as well. `error_overlap.png` shows them, and `tsne.png` the pooled features of
test images, as in Figure 5, for the first seed.

`results.json` gives `error_overlap` by stage and by the stage before it: the overlap of
`each` seed, the `median`, the `smaller` network, and the overlap expected `by_chance`
for independent errors: the larger network's error rate. `python -m kdjax.main`
rewrites the file without the overlaps: run the analysis after it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kdjax.runtime import command


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m kdjax.analysis",
        description="Error overlap and t-SNE of a finished experiment's networks.",
    )
    parser.add_argument("workdir", type=Path, help="the experiment's folder")
    parser.add_argument(
        "--stages",
        type=lambda text: text.split(","),
        metavar="A,B",
        help="the stages to analyse (default: all of results.json)",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=2000,
        metavar="N",
        help="test images that t-SNE plots, 0 for no t-SNE (default: %(default)s)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="folder of all data sets (default: the experiment's)",
    )
    options = parser.parse_args(argv)
    if options.examples < 0:
        parser.error(f"--examples={options.examples} is negative")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    # Imported late, so that wrong arguments fail fast.
    from kdjax.analysis.study import Study
    from kdjax.runtime import backend

    backend.use_compilation_cache()
    study = Study(options.workdir, options.data_dir)
    study.run(options.stages, options.examples)


if __name__ == "__main__":
    sys.exit(main())
