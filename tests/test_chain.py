"""DGKD's chain by the command: shared stages, one stage, dry run, the bank's switch."""

import errno
import json

import in_process
import pytest

from kdjax import main as command

pytestmark = pytest.mark.slow

TINY = "path=plain4/plain3/plain2,epochs=2,batch_size=32,train_size=64,test_size=64"
PLAIN = f"configs/dgkd.py:digits,{TINY}"


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch, request):
    in_process.enter(monkeypatch, request.config.rootpath)


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command in one folder; returns both outputs."""

    def run(arg: str, *more: str, code: int = 0) -> tuple[str, str]:
        args = ["kdjax", f"--config={arg}", f"--workdir={tmp_path / 'w'}", *more]
        assert command.main(args) == code
        return capsys.readouterr()

    return run


def results(tmp_path):
    return json.loads((tmp_path / "w" / "results.json").read_text())


def trained(out: str) -> list[str]:
    """Stages whose last epoch was trained, not found."""
    return [line.split()[0] for line in out.splitlines() if " epoch 2/2 " in line]


def test_configs_of_one_folder_share_their_stages(run, tmp_path):
    out, _ = run(PLAIN, "--stages=T4")
    assert trained(out) == ["T4"]
    assert list(results(tmp_path)["stages"]) == ["T4"]
    out, _ = run(f"{PLAIN},method=kd")
    assert trained(out) == ["S2"]
    out, _ = run(PLAIN, "--dry-run")
    rows = {
        line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line
    }
    for stage, there, missing in (("T4", 1, 0), ("A3", 0, 1), ("S2", 0, 1)):
        words = [word.strip() for word in rows[stage].split("│")[1:-1]]
        assert words[-2:] == [str(there), str(missing)]
    assert "in epochs: 4; 6 with every teacher in every step" in out
    out, _ = run(PLAIN)
    assert trained(out) == ["A3", "S2"]
    # T4 speaks once an epoch for A3 and S2 from the bank, A3 once for S2 in the step.
    stages = results(tmp_path)["stages"]
    passes = {name: stage["teacher_passes"] for name, stage in stages.items()}
    assert passes == {"T4": [0], "A3": [2], "S2": [2]}
    assert not list((tmp_path / "w" / "bank").iterdir())
    out, _ = run(PLAIN, "--config.stages.S2.dgkd.alpha=0.5")
    assert trained(out) == ["S2"]
    assert results(tmp_path)["stages"]["A3"]["digest"] == stages["A3"]["digest"]


def test_stochastic_guidance_learns_digits(run, tmp_path):
    """First runs of half as many epochs reached 0.85 and 0.93."""
    path = "path=plain4/plain3/plain2"
    run(f"configs/dgkd.py:digits,{path},epochs=10,method=dgkd_stochastic")
    assert results(tmp_path)["stages"]["S2"]["test_accuracy"]["median"] >= 0.90


def test_a_dry_run_writes_nothing_and_needs_no_data(run, tmp_path, monkeypatch):
    monkeypatch.setattr("kdjax.experiment.run.Training", None)
    out, _ = run("configs/dgkd.py:imagenet", "--dry-run")
    for words in ("11,689,512", "21,797,672", "T34 would not fit", "1,281,167 images"):
        assert words in out.replace("\n", " ")
    assert not (tmp_path / "w").exists()
    _, err = run("configs/dgkd.py:imagenet", code=2)
    assert "'imagenet' not found" in err
    assert err.count("\n") == 1


def test_what_cannot_run_ends_with_one_line(run):
    for arg, more, words in (
        ("configs/dgkd.py:digits,path=plain10/plain2", (), ["'T10'", "8x8", "nothing"]),
        (PLAIN, ("--stages=A9",), ["'A9'", "T4, A3, S2"]),
        (PLAIN, ("--config.stages.A3.teachers=('A3',)",), ["circle: A3 -> A3"]),
        (PLAIN, ("--config.stages.A3.teachers=('S2',)",), ["circle"]),
        (PLAIN, ("--config.bank.max_gb=-1",), ["bank.max_gb=-1.0"]),
    ):
        _, err = run(arg, *more, "--dry-run", code=2)
        assert err.startswith("kdjax: ")
        assert err.count("\n") == 1
        for word in words:
            assert word in err


def test_a_full_disk_ends_with_one_line(run, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", "results.json")

    monkeypatch.setattr("kdjax.experiment.dry_run.show", full)
    _, err = run(PLAIN, "--dry-run", code=2)
    assert err.startswith("kdjax: No space left on device: results.json; free some")
