"""Makes a report: reads the runs, draws the pictures, writes the page."""

import functools
from collections.abc import Sequence
from pathlib import Path

from kdjax.report import page, reading
from kdjax.report.figures.sizes import sizes
from kdjax.report.figures.style import save
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError


def make(
    paths: Sequence[Path],
    out: Path,
    *,
    networks: bool = True,
    data_dir: Path | None = None,
) -> Path:
    """Writes the report of some runs and returns the page's path.

    Args:
        paths: see `reading.read`.
        out: the page's folder; made if absent.
        networks: whether trained networks are looked into, where they are at hand.
        data_dir: the folder of data sets; None means the experiments'.

    Raises:
        UserError: no finished stages, or a folder that cannot be written.
    """
    page.check_template_engine()
    runs, notes = reading.read(paths)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    sections = {}
    for number, run in enumerate(runs, start=1):
        pictures = [
            save(
                functools.partial(sizes, run),
                out,
                f"{number}-sizes",
                title="Parameters against accuracy",
                caption="Symbols are medians over the seeds, dots seeds.",
                alt="",
            )
        ]
        sections[run.name] = page.section(run, out, pictures)
    path = page.write(out, runs, notes, sections)
    console.print(f"{path} written", markup=False)
    return path
