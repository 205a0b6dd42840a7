"""Makes a report: reads the runs, draws the pictures, writes the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdjax.report import page, reading
from kdjax.report.runs import Run
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
    sections = {
        run.name: _section(run, out, str(number), networks, data_dir)
        for number, run in enumerate(runs, start=1)
    }
    path = page.write(out, runs, notes, sections)
    console.print(f"{path} written", markup=False)
    return path


def _section(
    run: Run, out: Path, prefix: str, networks: bool, data_dir: Path | None
) -> dict[str, Any]:
    """Returns what the page shows of a run, after drawing its pictures."""
    # Imported late: JAX and matplotlib take seconds.
    from kdjax.report import looks, measures, method_table
    from kdjax.report.gallery import Gallery
    from kdjax.report.outputs import Looker

    gallery, notes = Gallery(run, out, prefix), []
    looker, columns = None, method_table.columns(run.results)
    column_notes = method_table.NOTES if columns else ()
    overlaps = measures.stored_overlaps(run)
    if networks and run.has_networks:
        try:
            looker = Looker(run, data_dir)
            measured = measures.measure(run, looker)
        except UserError as error:
            looker = None
            notes.append(
                f"What needs the networks and test images is left out: {error}"
            )
            console.print(f"{run.name}  {notes[-1]}", markup=False)
        else:
            columns, overlaps = measured.columns(), list(measured.overlaps)
            column_notes = measures.NOTES
            if not looker.test.whole:
                notes.append(
                    "Figures that need the test images, and agreement, KL and ECE, are "
                    f"of {len(looker.test.labels):,} of the {looker.test.total:,} test "
                    "images."
                )
            if measures.store(run, measured):
                console.print(
                    f"{run.path / 'results.json'}  agreement, kl and ece added",
                    markup=False,
                )
    gallery.from_results(overlaps)
    if looker is not None:
        looks.add(run, looker, gallery)
    console.print(f"{run.name}  {len(gallery.pictures)} pictures", markup=False)
    return page.section(
        run,
        out,
        gallery.pictures,
        notes,
        columns,
        column_notes,
    )
