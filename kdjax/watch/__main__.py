"""Shows how far a running experiment is: python -m kdjax.watch WORKDIR.

    python -m kdjax.watch runs/dgkd

Reads the working folder alone and changes nothing in it, so it may run anywhere the
folder is seen, beside the experiment or after it. Ctrl-C ends it; `--once` prints one
frame.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kdjax.runtime import command


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m kdjax.watch",
        description="How far the experiment in a working folder is.",
    )
    parser.add_argument("workdir", type=Path, help="the experiment's folder")
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument(
        "--every",
        type=float,
        default=2.0,
        metavar="S",
        help="seconds between frames (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    if options.every <= 0:
        parser.error(f"--every={options.every} is not positive")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    options = _parse(argv)
    from rich.console import RenderableType

    from kdjax.runtime.console import console
    from kdjax.watch import state
    from kdjax.watch.frame import frame

    def now() -> RenderableType:
        return frame(options.workdir, state.read(options.workdir), console.width)

    if options.once:
        console.print(now())
        return
    from rich.live import Live

    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, auto_refresh=False) as live,
    ):
        while True:
            live.update(now(), refresh=True)
            time.sleep(options.every)


if __name__ == "__main__":
    sys.exit(main())
