"""The report of networks that were trained, in a browser; comparing and watching."""

import dataclasses
import json
import math
import os
import re
import shutil
from pathlib import Path

import browser
import in_process
import numpy as np
import pytest

from kdjax import main as training
from kdjax.compare import __main__ as compare
from kdjax.report import __main__ as command
from kdjax.report import history, reading, test_set
from kdjax.runtime.errors import UserError
from kdjax.watch import __main__ as watch
from kdjax.watch import frame, state

ROOT = Path(__file__).parents[1]
CONFIG = (
    "--config=configs/kd.py:supervised/kd/ctkd,dataset=digits,teacher=plain4,"
    "student=plain2,epochs=2,train_size=64,test_size=64,batch_size=16,seeds=3"
)


@pytest.fixture(autouse=True, scope="module")
def _in_this_process():
    """From the repository's root, without signal handlers or cache."""
    with pytest.MonkeyPatch.context() as patch:
        in_process.enter(patch, ROOT)
        yield


@pytest.fixture(scope="module")
def trained(_in_this_process, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("report") / "run"
    assert training.main(["kdjax", CONFIG, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    """Returns a working folder after a report of it, and the report's folder."""
    pytest.importorskip("jinja2")
    folder = tmp_path_factory.mktemp("reported")
    workdir = shutil.copytree(trained, folder / "run")
    out = folder / "report"
    assert command.main([str(workdir), f"--out={out}"]) == 0
    return workdir, out


def read(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_the_run_is_read_from_its_folders(trained):
    ((run,), notes) = reading.read([trained])
    assert notes == []
    results = read(trained)["stages"]
    assert list(run.stages) == list(results)
    for name, stage in run.stages.items():
        assert list(stage.student.accuracy) == results[name]["test_accuracy"]["final"]
        assert stage.seeds == (0, 1, 2)
        assert [f.name.rpartition("-")[2] for f in stage.folders] == (
            results[name]["fingerprint"]
        )
        assert (stage.epochs, stage.train_images, stage.test_images) == (2, 64, 64)
    assert run.stages["ctkd"].path == "plain-4/plain-2"
    assert run.stages["ctkd"].teachers == ("teacher",)
    # Without results.json, and from results.json alone, it is the same.
    ((alone,), _) = reading.read([trained / "results.json"])
    for name, stage in alone.stages.items():
        ours = run.stages[name]
        assert (stage.kind, stage.path, stage.epochs) == (
            ours.kind,
            ours.path,
            ours.epochs,
        )
        assert stage.networks == ours.networks
        assert stage.train_images == 64


def test_results_have_new_keys_and_keep_the_rest(trained, reported):
    before, after = read(trained), read(reported[0])
    for name, stage in after["stages"].items():
        ece = stage.pop("ece")
        assert ece["bins"] == 15
        assert len(ece["each"]) == 3
        assert ece["median"] == np.median(ece["each"])
        assert all(0 <= value <= 1 for value in ece["each"])
        kl, agreement = stage.pop("kl", {}), stage.pop("agreement", {})
        teachers = {"ctkd": {"teacher", "scratch"}, "kd": {"teacher"}}.get(name, set())
        assert set(kl) == set(agreement) == teachers
        for found in (*kl.values(), *agreement.values()):
            assert len(found["each"]) == 3
            assert all(math.isfinite(value) for value in found["each"])
    assert after == before
    scratch = read(reported[0])["stages"]["ctkd"]["agreement"]
    # The scratch teacher retraces the teacher: it has the same weights.
    assert scratch["scratch"]["each"] == pytest.approx(scratch["teacher"]["each"])


def test_the_page_has_the_papers_figures(reported):
    text = (reported[1] / "index.html").read_text()
    for name in (
        *("CTKD Fig. 3", "CTKD Fig. 5(a)", "CTKD Fig. 5(b)", "CTKD Fig. 6"),
        *("DGKD Fig. 4", "DGKD Fig. 5", "Parameters against accuracy"),
        *("Reliability", "What ctkd confuses", "Where ctkd and teacher differ most"),
    ):
        assert f"{name}" in text, name
    assert not re.search(r'(src|srcset|href)="(https?:)?//', text)
    pictures = re.findall(r"<img [^>]*>", text)
    assert len(pictures) > 9
    for picture in pictures:
        assert len(re.search(r'alt="([^"]*)"', picture)[1]) > 20
    for link in re.findall(r'href="([^"#][^"]*)"', text):
        if not link.startswith("data:"):
            assert (reported[1] / link).exists(), link
    assert "Student's paired t-test" in text


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium is installed")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_the_page_in_a_browser(reported, tmp_path, width, dark):
    found = browser.look(reported[1], tmp_path, width, dark)
    assert found["problems"] == []
    assert len(found["images"]) > 9
    assert min(found["images"]) > 100
    assert found["up"] == sorted(found["up"])
    assert found["down"] == found["up"][::-1]
    assert len(set(found["up"])) > 1
    assert found["window"] == width
    assert found["width"] <= width
    assert found["opened"]
    assert found["dark"] == dark
    assert not found["overlapping"]


def test_without_networks(trained, tmp_path):
    pytest.importorskip("jinja2")
    workdir = shutil.copytree(trained, tmp_path / "run")
    assert command.main([str(workdir), f"--out={tmp_path / 'o'}", "--no-networks"]) == 0
    text = (tmp_path / "o" / "index.html").read_text()
    assert "CTKD Fig. 5(b)" in text
    assert "CTKD Fig. 3" not in text
    assert read(workdir) == read(trained)


def test_without_the_images_the_rest_is_there(trained, tmp_path, monkeypatch):
    pytest.importorskip("jinja2")

    def missing(run, data_dir):
        raise UserError(f"'digits' not found in {data_dir}")

    monkeypatch.setattr("kdjax.report.test_set.load", missing)
    workdir = shutil.copytree(trained, tmp_path / "run")
    out = tmp_path / "o"
    assert command.main([str(workdir), f"--out={out}", "--data-dir=nowhere"]) == 0
    text = (out / "index.html").read_text()
    assert "is left out: 'digits' not found in nowhere" in text.replace("&#39;", "'")
    assert "CTKD Fig. 5(b)" in text
    assert read(workdir) == read(trained)


def test_figures_of_a_sample_are_marked(trained, tmp_path, monkeypatch):
    pytest.importorskip("jinja2")

    def some(run, data_dir):
        found = whole(run, data_dir)
        return dataclasses.replace(
            found, images=found.images[::2], labels=found.labels[::2]
        )

    whole = test_set.load
    monkeypatch.setattr("kdjax.report.test_set.load", some)
    monkeypatch.setattr("kdjax.report.looks.add", lambda *_: None)  # pictures
    workdir = shutil.copytree(trained, tmp_path / "run")
    assert command.main([str(workdir), f"--out={tmp_path / 'o'}"]) == 0
    text = " ".join((tmp_path / "o" / "index.html").read_text().split())
    assert "are of 32 of the 64 test images" in text
    stage = read(workdir)["stages"]["kd"]
    assert stage["ece"]["images"] == stage["kl"]["teacher"]["images"] == 32


def test_few_seeds_claim_nothing(trained, tmp_path):
    pytest.importorskip("jinja2")
    workdir = shutil.copytree(trained, tmp_path / "run")
    ((run,), _) = reading.read([workdir])
    for stage in run.stages.values():
        shutil.rmtree(stage.folders[2])
    assert command.main([str(workdir), f"--out={tmp_path / 'o'}", "--no-networks"]) == 0
    text = (tmp_path / "o" / "index.html").read_text()
    assert "No difference is claimed" in text
    assert "t-test" not in text


def test_history_is_found_in_both_places(trained, tmp_path):
    ((run,), _) = reading.read([trained])
    folder = run.stages["kd"].folders[0]
    records = history.read(folder)
    assert [record["epoch"] for record in records] == [1, 2]
    copied = shutil.copytree(folder, tmp_path / "copy")
    (copied / "result.json").unlink()
    assert [r["test/accuracy/student"] for r in history.read(copied)] == pytest.approx(
        [r["test/accuracy/student"] for r in records]
    )
    with open(copied / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "te')  # as while it is being written
    assert len(history.read(copied)) == 2
    assert history.read(tmp_path) == []


def output(capsys, main, *args, code=0):
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == code
    out, err = capsys.readouterr()
    if code:
        assert err.count("\n") == 1
        assert len(err) < 300
        return err
    return out


def test_compare(capsys, trained, tmp_path):
    same = output(capsys, compare.main, trained, trained)
    assert "no settings differ" in same
    results = read(trained)
    accuracy = results["stages"]["kd"]["test_accuracy"]["final"]
    results["stages"]["kd"]["test_accuracy"]["final"] = [a + 0.25 for a in accuracy]
    results["config"]["recipe"]["learning_rate"] = 0.125
    (tmp_path / "other.json").write_text(json.dumps(results))
    text = output(
        capsys, compare.main, trained / "results.json", tmp_path / "other.json"
    )
    assert "recipe.learning_rate: A 0.05, B 0.125  (every stage)" in text
    assert "+25.00 ± 0.00, p 0.000" in text
    assert "With 3 seeds" in text
    err = output(
        capsys, compare.main, trained, ROOT / "docs/results/h100/ctkd.json", code=2
    )
    assert "learned digits and" in err
    assert "not found" in output(capsys, compare.main, trained, tmp_path / "no", code=2)
    several = output(capsys, compare.main, trained, ROOT / "docs/results", code=2)
    assert "runs; name the file of one" in several


def test_watch_shows_the_graph_and_its_states(capsys, trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    text = output(capsys, watch.main, workdir, "--once")
    assert "12 of 12 replicas finished" in text
    assert re.search(r"ctkd +│ teacher +│ +0-2", text)
    assert "(ctkd)" in text
    ((run,), _) = reading.read([workdir])
    training_, stopped, waiting = run.stages["kd"].folders
    for folder in (training_, stopped):
        (folder / "result.json").unlink()
    shutil.rmtree(waiting)
    first = (training_ / "metrics.jsonl").read_text().splitlines()[0]
    (training_ / "metrics.jsonl").write_text(f"{first}\n")
    for path in stopped.rglob("*"):
        os.utime(path, (0, 0))
    os.utime(training_ / "stage.json")
    by_name = {stage.name: stage for stage in state.read(workdir)}
    kd = by_name["kd"].replicas
    assert [replica.state for replica in kd] == ["training", "stopped", "waiting"]
    assert [replica.done for replica in kd] == [1, 2, 0]
    seconds = [replica.seconds_per_epoch for replica in kd]
    # One epoch of the first, and both of the third at the slower one's speed.
    expected = seconds[0] + 2 * max(seconds[:2])
    assert by_name["kd"].seconds_left() == pytest.approx(expected)
    text = output(capsys, watch.main, workdir, "--once")
    assert "9 of 12 replicas finished; time left:" in text
    assert "░ 1/2" in text
    assert "waiting" in text
    assert "silent for" in text


def test_watch_without_a_plan(capsys, trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    (workdir / "experiment.json").unlink()
    text = output(capsys, watch.main, workdir, "--once")
    assert "12 of 12 replicas finished" in text
    assert text.index("plain-4") < text.index("plain-2")
    (tmp_path / "empty").mkdir()
    err = output(capsys, watch.main, tmp_path / "empty", "--once", code=2)
    assert "nothing has begun in" in err
    assert "not found" in output(capsys, watch.main, tmp_path / "no", "--once", code=2)
    assert "--every=0.0" in output(capsys, watch.main, tmp_path, "--every=0", code=2)


def test_sparklines():
    assert frame.sparkline([0.0, 0.4, 1.0], 16) == "▁▄█"
    assert frame.sparkline([0.3], 16) == "▁"
    assert len(frame.sparkline(list(range(100)), 16)) == 16
    assert frame.sparkline(list(range(100)), 16)[-1] == "█"
    assert frame.duration(3723.4) == "1:02:03"
