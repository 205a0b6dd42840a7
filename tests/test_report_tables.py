"""The report's tables: the papers' numbers, and which stage belongs beside which."""

import json
import re
import tarfile
from pathlib import Path

import pytest

from configs import ctkd_tables, dgkd_tables
from kdjax.report import __main__ as command
from kdjax.report import (
    history,
    lineage,
    method_table,
    papers,
    reading,
    statistics,
    tables,
)
from kdjax.watch import state

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def runs():
    found, notes = reading.read([RESULTS])
    assert any("steps.json passed over" in note for note in notes)
    return {run.name: run for run in found}


def test_the_papers_numbers_are_those_of_the_configs():
    """The docstrings were copied from the papers by somebody else."""
    ours = {f"{row.value:.2f}" for table in papers.tables() for row in table.rows}
    for module in (ctkd_tables, dgkd_tables):
        text = module.__doc__.split("Arguments")[0]
        theirs = {f"{float(n):.2f}" for n in re.findall(r"\b\d\d\.\d\d?\b", text)}
        assert len(theirs) > 20
        assert not theirs - ours


def test_every_row_of_a_table_is_another_number_of_the_paper():
    for table in papers.tables():
        places = [(row.row, row.column) for row in table.rows]
        assert len(set(places)) == len(places), table.name
        assert all(30 < row.value < 97 for row in table.rows)
    assert len(papers.tables()) == 16


@pytest.mark.parametrize(
    ("method", "options", "taught", "expected"),
    [
        ("kd", {}, False, "kd"),
        ("kd", {}, True, "takd"),
        ("rocket", {"rocket": {"tied": "lower"}}, False, "rlkd"),
        ("rocket", {"rocket": {"tied": "none"}}, False, "scratch_only"),
        ("rocket+fitnet", {"rocket": {"tied": "none"}}, False, "scratch+fitnet"),
        ("ctkd", {"ctkd": {"inherit": True}}, False, "weights"),
        ("ctkd", {"ctkd": {"inherit": False}}, False, "ctkd"),
        ("dgkd", {"dgkd": {"survival": 1.0}}, True, "dgkd"),
        ("dgkd", {"dgkd": {"survival": 0.75}}, True, "dgkd p=0.75"),
        ("dgkd", {"dgkd": {"drop": "fixed:1"}}, True, "dgkd p=fixed:1"),
        ("crd", {}, False, "crd"),
    ],
)
def test_how_a_network_was_taught(method, options, taught, expected):
    assert lineage.kind(method, options, taught) == expected


def test_every_row_of_the_configs_finds_its_place():
    """A graph's stages, as results, cover the rows of the table that it is for."""
    for module, name, paper in (
        (ctkd_tables, "table1", "Table I"),
        (ctkd_tables, "table2", "Table II"),
        (ctkd_tables, "table3", "Table III"),
        (ctkd_tables, "table4-svhn", "Table IV, SVHN"),
        (ctkd_tables, "table4-cifar100", "Table IV, CIFAR-100"),
        (ctkd_tables, "table5", "Table V"),
        (dgkd_tables, "table1", "Table 1"),
        (dgkd_tables, "table2", "Table 2"),
        (dgkd_tables, "table3", "Table 3, top-1"),
        (dgkd_tables, "table4", "Table 4"),
        (dgkd_tables, "table5", "Table 5"),
        (dgkd_tables, "table6-plain", "Table 6, plain CNNs"),
        (dgkd_tables, "table6-resnet", "Table 6, ResNets"),
        (dgkd_tables, "table7", "Table 7"),
        (dgkd_tables, "table8", "Table 8"),
    ):
        stages = reading._of_results(_results(module.get_config(name).to_dict()))
        known = {(stage.kind, stage.path) for stage in stages.values()}
        (table,) = (one for one in papers.tables() if one.name == paper)
        missing = [row for row in table.rows if (row.kind, row.path) not in known]
        assert not missing, (paper, missing)


def _results(config):
    """Returns results of a config whose stages all have the same figures."""
    figures = {
        "parameters": 1,
        "test_accuracy": {"final": [0.5], "median": 0.5},
        "test_top5": {"final": [0.5], "median": 0.5},
        "test_loss": [1.0],
        "others": {},
    }
    stages, ordered = config["stages"], {}

    def visit(name):
        for teacher in stages[name]["teachers"]:
            visit(teacher)
        ordered.setdefault(name, {**figures, **_part(stages[name])})

    for name in stages:
        visit(name)
    return {"config": config, "stages": ordered}


def _part(stage):
    return {key: stage[key] for key in ("model", "method", "teachers")}


def test_figures_stand_beside_the_papers(runs, tmp_path):
    filled = tables.fill([runs["h100/ctkd"]], tmp_path)
    assert [one.table.name for one in filled] == ["Table I", "Table II", "Table III"]
    lines = {(ln.row.row, ln.row.column): ln for ln in filled[0].lines}
    (cell,) = lines["CTKD", "WRN-16-1"].cells[0]
    assert cell.figures.each == pytest.approx((85.80, 86.08, 85.99))
    assert cell.figures.median == pytest.approx(85.99)
    assert cell.figures.mean == pytest.approx(85.9567, abs=1e-4)
    assert cell.figures.std == pytest.approx(0.1429, abs=1e-4)  # by hand
    assert cell.smaller[0] == "40 of 200 epochs"
    assert cell.smaller[-1] == "3 of 5 seeds"
    assert lines["CTKD", "WRN-16-2"].cells[0] == ()  # a gap stays one


def test_full_scale_is_not_marked(runs):
    stage = runs["h100/ctkd"].stages["ctkd"]
    (table,) = (one for one in papers.tables() if one.name == "Table I")
    full = {"epochs": 200, "train_images": 50_000, "seeds": (0, 1, 2, 3, 4)}
    assert tables.smaller(table, _with(stage, **full)) == ()
    assert tables.smaller(table, _with(stage, **full | {"seeds": (0,)})) == (
        "1 of 5 seeds",
    )


def _with(stage, **changes):
    import dataclasses

    return dataclasses.replace(stage, **changes)


def test_an_old_folder_is_read(tmp_path):
    with tarfile.open(ROOT / "tests" / "data" / "old-workdir.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    ((run,), _) = reading.read([tmp_path])
    assert [stage.name for stage in run.stages.values()] == [
        "expert",
        "assistant",
        "replay",
    ]
    assert run.stages["assistant"].teachers == ("expert",)
    assert run.stages["replay"].kind == "ctkd"
    assert all(history.read(s.folders[0]) for s in run.stages.values())
    watched = {stage.name: stage for stage in state.read(tmp_path)}
    assert watched["expert"].replicas[0].state == "finished"
    assert watched["student"].replicas[0].done == 1


def test_the_table_of_all_methods_is_read(runs):
    """What `benchmarks.methods` keeps has no teachers, losses or sizes."""
    run = runs["results/methods"]
    rows = json.loads((RESULTS / "methods.json").read_text())["methods"]
    assert sorted(run.stages) == sorted(row["method"] for row in rows)
    for row in rows:
        student = run.stages[row["method"]].student
        assert list(student.accuracy) == row["test_accuracy"]
        assert (student.parameters, student.loss) == (None, ())
    assert run.stages["kd"].path == "resnet-20/resnet-8"
    assert run.stages["ensemble"].path == "resnet-20+resnet-14/resnet-8"
    assert run.stages["dgkd"].epochs == 6
    columns = method_table.columns(run.results)
    assert columns["epoch / KD's"]["kd"] == (1.0, ["1.00"])
    assert columns["extra parameters"]["crd"] == (16640, ["16,640"])
    assert method_table.columns(runs["h100/ctkd"].results) == {}


def test_marks_that_differ_in_a_column_stay_in_its_cells(runs):
    (filled,) = (
        one
        for one in tables.fill([runs["h100/ctkd"]], Path())
        if one.table.name == "Table I"
    )
    assert filled.smaller_throughout(0)[0] == "40 of 200 epochs"
    line = next(line for line in filled.lines if line.cells[0])
    other = _with(line.cells[0][0], smaller=("1 of 5 seeds",))
    changed = _with(filled, lines=(*filled.lines, _with(line, cells=((other,),))))
    assert changed.smaller_throughout(0) == ()


def error(capsys, *args):
    capsys.readouterr()
    assert command.main([str(arg) for arg in args]) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert len(err) < 300
    return err


def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch):
    out = f"--out={tmp_path / 'out'}"
    assert "nowhere not found" in error(capsys, tmp_path / "nowhere", out)
    (tmp_path / "empty" / "stages").mkdir(parents=True)
    assert "no finished stages in" in error(capsys, tmp_path / "empty", out)
    (tmp_path / "bad.json").write_text("{")
    assert "bad.json cannot be read" in error(capsys, tmp_path / "bad.json", out)
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    assert "no finished stages" in error(capsys, tmp_path / "other.json", out)
    assert "--out" in error(capsys, tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    assert "jinja2 is missing" in error(capsys, RESULTS, out)
    assert not (tmp_path / "out").exists()


def test_the_page_of_the_committed_results(tmp_path):
    pytest.importorskip("jinja2")
    assert command.main([str(RESULTS), f"--out={tmp_path}"]) == 0
    text = (tmp_path / "index.html").read_text()
    assert "Table IV" not in text
    # What holds for a whole column is said once, in its head.
    ours = text[text.index("CTKD, Table I:") : text.index("CTKD, Table II:")]
    assert ours.count("smaller: 40 of 200 epochs") == 1
    assert ours.count('<span class="mark">smaller</span>') == 5
    assert "extra parameters</th>" in text
    for source in re.findall(r'(?:src|srcset|href)="(pictures/[^"]+)"', text):
        assert (tmp_path / source).stat().st_size > 0
    anchors = set(re.findall(r'href="#([^"]+)"', text))
    assert anchors
    assert anchors <= set(re.findall(r'id="([^"]+)"', text))


def test_the_documentations_figures_are_those_of_the_files(runs):
    """Each median with its seeds in `docs/reproduction.md` is that of a stage."""
    text = (ROOT / "docs" / "reproduction.md").read_text()
    known = set()
    for run in runs.values():
        for stage in run.stages.values():
            values = [100 * value for value in stage.student.accuracy]
            each = " ".join(f"{value:.2f}" for value in values)
            known.add(f"{statistics.spread(values).median:.2f} ({each})")
    written = re.findall(r"\d\d\.\d\d \(\d\d\.\d\d [^)]*\)", text)
    assert len(written) == 15
    assert set(written) <= known
    found = {
        (pair.first, pair.second): f"{pair.mean:.2f} ± {pair.margin:.2f}"
        for name in ("h100/ctkd", "h100/dgkd")
        for pairs in statistics.differences(runs[name]).values()
        for pair in pairs
    }
    for pair in (
        ("ctkd", "kd"),
        ("ctkd", "at"),
        ("ctkd", "baseline"),
        ("stochastic75-10-8-6-4-2", "takd-10-8-6-4-2"),
    ):
        assert found[pair] in text, (pair, found[pair])
