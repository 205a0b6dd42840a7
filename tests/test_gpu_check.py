"""gpu_check.sh with a stub for Python: what it runs, and what it keeps."""

import os
import subprocess

import pytest

from benchmarks import baseline, options
from kdjax.experiment.flags import parse_flags
from tests import processes

SCRIPT = processes.ROOT / "launch" / "gpu_check.sh"

# Notes its arguments; a run leaves results and ends as STATUS says for its config.
STUB = """#!/usr/bin/env bash
printf '%s\\n' "$@" --- >> "$NOTED"
if [[ $2 == kdjax.main ]]; then
  workdir=$(printf '%s\\n' "$@" | sed -n 's/^--workdir=//p')
  mkdir -p "$workdir/stages/expert-1"
  echo more >> "$workdir/stages/expert-1/result.json"
  echo '{}' > "$workdir/results.json"
fi
[[ " $* " != *"$FAILING"* ]] || exit "$STATUS"
"""


@pytest.fixture
def check(tmp_path):
    stub, noted = tmp_path / "python", tmp_path / "noted"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(*args, failing="nothing", status="1", **variables):
        noted.write_text("")
        given = {"PYTHON": str(stub), "NOTED": str(noted)} | variables
        env = processes.environment(FAILING=failing, STATUS=status, **given)
        done = subprocess.run(
            [str(SCRIPT), *map(str, args)],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
        calls = noted.read_text().split("\n---\n")[:-1]
        return done, [call.split("\n") for call in calls]

    return run


@pytest.mark.parametrize("failing", ["nothing", "benchmarks.start"])
def test_what_is_measured_goes_on_after_a_failure(check, tmp_path, failing):
    done, calls = check("steps", tmp_path / "out", tmp_path, failing=failing)

    names = [" ".join(call[1:3]) for call in calls]
    assert [name.split()[0] for name in names] == [
        "benchmarks.start",
        "benchmarks.steps",
        "benchmarks.steps",
    ]
    assert "--profile" not in calls[1]
    assert "--profile" in calls[2]
    assert done.returncode == (failing != "nothing")
    assert (tmp_path / "out" / "profile.log").exists()


@pytest.mark.parametrize("tiny", ["", "1"])
def test_options_end_before_the_call_does(check, tmp_path, monkeypatch, tiny):
    sizes = {"TINY": tiny, "MINUTES": "5", "PRECISION": "float32"}
    done, (call,) = check("options", tmp_path / "out", tmp_path, **sizes)

    assert call[:2] == ["-m", "benchmarks.options"]
    taken = {}
    monkeypatch.setattr(
        options, "measure_case", lambda case, sets, end, **given: taken.update(given)
    )
    monkeypatch.setattr(options, "show_times", lambda name, found: None)
    assert options.main(call[2:]) == 0
    assert "--seconds=270" in call  # of 300
    assert ("--tiny" in call) == bool(tiny)
    assert taken["precision"] == "float32"
    assert (tmp_path / "out" / "options.json").exists()
    assert done.returncode == 0


def test_a_stopped_run_is_packed_and_the_next_call_goes_on(check, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"

    done, calls = check("train", first, tmp_path, failing="kdjax.main", status="143")
    assert done.returncode == 143
    assert len(calls) == 1
    assert sorted(os.listdir(first)) == ["ctkd.log", "packed"]

    done, calls = check("train", second, tmp_path, first / "packed")
    assert done.returncode == 0, done.stderr
    assert len(calls) == 2
    names = ["ctkd.json", "ctkd.log", "packed", "table1.json", "table1.log"]
    assert sorted(os.listdir(second)) == names
    # The stub has written a line in each of three runs, the first of them elsewhere.
    unpacked = tmp_path / "unpacked"
    visit = [str(SCRIPT.with_name("visit.sh")), "unpack", second / "packed", unpacked]
    subprocess.run(visit, check=True)
    result = unpacked / "stages" / "expert-1" / "result.json"
    assert result.read_text() == 3 * "more\n"


@pytest.mark.parametrize("tiny", ["", "1"])
def test_the_runs_have_flags_that_kdjax_takes(check, tmp_path, monkeypatch, tiny):
    _, calls = check("train", tmp_path / "out", tmp_path, TINY=tiny)

    monkeypatch.chdir(processes.ROOT)
    parsed = [parse_flags(["kdjax", *call[2:]]) for call in calls]
    ctkd, table = (one.config for one in parsed)
    assert ctkd["stages"]["student"]["ctkd"]["replay"]
    assert ctkd["seeds"] == table["seeds"] == (1 if tiny else 3)
    assert ctkd["data"] == table["data"]
    assert parsed[1].stages == ("baseline", "kd", "at")


@pytest.mark.parametrize("tiny", ["", "1"])
def test_the_baseline_goes_on_from_the_seeds_of_the_last_call(
    check, tmp_path, monkeypatch, tiny
):
    pytest.importorskip("torch", reason="torch is not installed")
    first, second = tmp_path / "first", tmp_path / "second"
    done, _ = check("baseline", first, tmp_path, failing="baseline", status="124")
    assert done.returncode == 1
    kept = first / "baseline" / "torch" / "0123"
    kept.mkdir(parents=True)
    (kept / "seed-0.json").write_text("{}")
    for path in (kept / "seed-0.json", kept):
        path.chmod(path.stat().st_mode & ~0o222)

    done, calls = check("baseline", second, tmp_path, first / "baseline", TINY=tiny)
    assert done.returncode == 0, done.stderr
    found = second / "baseline" / "torch" / "0123" / "seed-0.json"
    assert found.read_text() == "{}"
    # Not by writing: root may write to what is read-only.
    assert all(path.stat().st_mode & 0o200 for path in (found, found.parent))
    ((_, module, *words),) = calls
    assert module == "benchmarks.baseline"
    monkeypatch.setattr(baseline.tfds_files, "locate", lambda *_: None)
    options = baseline.parse(words)
    assert options.programs == ["torch"]
    assert options.workdir == second / "baseline"
    assert options.out == second / "baseline.json"
    assert options.data_dir == str(tmp_path)
    assert (options.seeds, options.epochs) == ((1, 1) if tiny else (3, 200))


def test_misuse_tells_how_it_is_used(check, tmp_path):
    done, calls = check("epochs", tmp_path / "out")
    assert (done.returncode, calls) == (2, [])
    assert "gpu_check.sh train OUT DATA" in done.stderr
