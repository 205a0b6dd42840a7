"""The page: what the template shows, and the file it becomes."""

import datetime
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import kdjax
from kdjax.report import lineage, statistics, tables
from kdjax.report.figures.style import Picture
from kdjax.report.runs import STUDENT, Run, Stage
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import replace_whole


def check_template_engine() -> None:
    """Raises UserError if Jinja2, which fills the page in, is not installed."""
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("jinja2 is missing: pip install 'kdjax[report]'") from None


def write(
    out: Path,
    runs: Sequence[Run],
    notes: Sequence[str],
    sections: Mapping[str, dict[str, Any]],
) -> Path:
    """Writes the page and returns its path.

    Args:
        out: its folder.
        runs: what it shows.
        notes: lines for its head.
        sections: by run, what `section` returned.
    """
    import jinja2

    filled = tables.fill(runs, out)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = (resources.files("kdjax.report") / "page.html.j2").read_text("utf-8")
    page = environment.from_string(text).render(
        title="Knowledge distillation: report",
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=kdjax.__version__,
        tables=[
            {
                "table": one.table,
                "runs": one.runs,
                "lines": one.lines,
                "has_params": any(line.row.params for line in one.lines),
                "columns": len({line.row.column for line in one.lines}),
                "smaller": [one.smaller_throughout(i) for i in range(len(one.runs))],
            }
            for one in filled
        ],
        smaller=any(one.smaller for one in filled),
        notes=notes,
        fewest=statistics.FEWEST,
        runs=[sections[run.name] for run in runs],
    )
    path = out / "index.html"
    with replace_whole(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def section(
    run: Run,
    out: Path,
    pictures: Sequence[Picture] = (),
    notes: Sequence[str] = (),
    measures: Mapping[str, Mapping[str, Any]] | None = None,
    measure_notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns what the template shows of a run.

    Args:
        run: the run.
        out: the page's folder.
        pictures: of the run.
        notes: lines for readers, such as why something is missing.
        measures: by column and by network's label, what is shown of it: a number to
            sort by, and lines of text.
        measure_notes: what these columns mean.
    """
    measures = measures or {}
    stages = list(run.stages.values())
    return {
        "run": run,
        "anchor": "run-" + "".join(c if c.isalnum() else "-" for c in run.name),
        "link": tables.link(run.path, out),
        "about": about(stages),
        "notes": notes,
        "measures": list(measures),
        "measure_notes": measure_notes,
        "rows": [
            row(run, stage, role, out, measures)
            for stage in stages
            for role in stage.networks
        ],
        "differences": [
            {
                "shared": shared,
                "pairs": pairs,
                "tells": statistics.what_seeds_tell(min(len(p.each) for p in pairs)),
            }
            for shared, pairs in statistics.differences(run).items()
        ],
        "pictures": pictures,
        "stages": [details(run, stage, out) for stage in stages],
    }


def about(stages: Sequence[Stage]) -> str:
    """Returns on which data a run's networks were trained, as a sentence."""
    data = {
        f"{stage.dataset}: {stage.train_images:,} training and "
        f"{stage.test_images:,} test images"
        for stage in stages
    }
    return f"{'; '.join(sorted(data))}."


def label(stage: Stage, role: str) -> str:
    """Returns the name of one of a stage's networks, such as 'student/scratch'."""
    return stage.name if role == STUDENT else f"{stage.name}/{role}"


def row(
    run: Run,
    stage: Stage,
    role: str,
    out: Path,
    measures: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns a row of the table of all networks."""
    network, name = stage.networks[role], label(stage, role)
    return {
        "name": name,
        "label": stage.label if role == STUDENT else f"(trained beside {stage.name})",
        "model": lineage.plain(network.model),
        "parameters": network.parameters,
        "cell": tables.accuracy(run, stage, network, out),
        "top5": 100 * float(np.median(network.top5)),
        "loss": float(np.median(network.loss)) if network.loss else None,
        "measures": [column.get(name) for column in measures.values()],
        "epochs": stage.epochs,
    }


def details(run: Run, stage: Stage, out: Path) -> dict[str, Any]:
    """Returns a stage's settings and where it lies."""
    settings = {key: value for key, value in stage.settings.items() if key != "classes"}
    return {
        "anchor": tables.anchor(run, stage),
        "name": stage.name,
        "label": stage.label,
        "path": stage.path.replace("/", " → "),
        "teachers": stage.teachers,
        "seeds": len(stage.seeds),
        "folders": [
            {"seed": seed, "folder": f"{tables.link(folder, out)}/"}
            for seed, folder in zip(stage.seeds, stage.folders, strict=False)
        ],
        "file": tables.link(run.path, out),
        "settings": json.dumps(settings, indent=1),
    }
