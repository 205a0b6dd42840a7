"""Whole runs of the command: results, found stages, kills, damaged files."""

import dataclasses
import functools
import os
import shutil
import signal
from pathlib import Path

import pytest
from command import Command, records

pytestmark = pytest.mark.slow

START = Path(__file__).parents[1] / "docs" / "start.md"
SMALL = (  # how runs go on does not depend on the networks
    "--config.stages.expert.model=plain-4",
    "--config.stages.student.model=plain-2",
    "--config.stages.student.ctkd.scratch=plain-4",
    "--config.stages.student.ctkd.levels=('stage1','stage2')",
)
OFTEN = "--config.saving.every_s=0"  # a checkpoint after every step
CHANGE = "--config.stages.student.ctkd.beta=1"
QUICK_START = "--config configs/ctkd.py:digits"  # the published networks
EPOCHS, THRESHOLD = 10, 0.97
# 6 steps an epoch.
TINY = "digits,epochs=3,batch_size=32,train_size=200,test_size=64"


def largest(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Returns commands in new folders; all share one cache of compiled programs."""
    cache = tmp_path_factory.mktemp("small")

    def command(arg: str, *more: str, copy_of: Path | None = None) -> Command:
        workdir = tmp_path_factory.mktemp("run")
        if copy_of:
            shutil.copytree(copy_of, workdir, dirs_exist_ok=True)
        config = f"--config=configs/ctkd.py:{arg}"
        return Command(workdir, (config, *SMALL, *more), cache)

    return command


def without_student(command: Command) -> Command:
    """Returns the command after removing what it has of the student's stage."""
    shutil.rmtree(command.folder("student"))
    (command.workdir / "results.json").unlink()
    return command


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The quick start of the pages: the command and what it printed."""
    assert f"kdjax.main {QUICK_START} --workdir" in START.read_text()
    folder = tmp_path_factory.mktemp("quick_start")
    # Its steps count: they are compiled as a user's are.
    args = tuple(QUICK_START.split())
    command = Command(folder / "run", args, folder / "cache", xla_flags="")
    return command, command.run()[0]


@pytest.fixture(scope="module")
def straight(make):
    """The tiny run that nothing has interrupted."""
    command = make(TINY)
    command.run()
    return command


@pytest.fixture(scope="module")
def changed(make, straight):
    """The tiny run's folder after a change of the student, and what was printed."""
    command = make(TINY, CHANGE, copy_of=straight.workdir)
    out, _ = without_student(command).run()
    return command, out


@pytest.fixture(scope="module")
def terminated(make, straight):
    """A tiny run that SIGTERM ended within the student's stage, and its stderr."""
    command = without_student(make(TINY, OFTEN, copy_of=straight.workdir))
    ready = functools.partial(command.saved_steps, "student")
    return command, command.end_when(ready, signal.SIGTERM, 143)[1]


def test_the_quick_start_reaches_97_percent(whole):
    stages = whole[0].results()["stages"]
    for network in (stages["expert"], stages["student"]):
        assert network["test_accuracy"]["median"] >= THRESHOLD


def test_results_obey_the_contract(whole):
    results = whole[0].results()
    assert list(results["stages"]) == ["expert", "student"]
    for name, stage in results["stages"].items():
        folder = whole[0].folder(name)
        history = records(folder)
        scores = [record["test/accuracy/student"] for record in history]
        assert stage["test_accuracy"]["final"] == [scores[-1]]
        assert stage["test_accuracy"]["best"] == [max(scores)]
        assert stage["test_accuracy"]["median"] == scores[-1]
        assert stage["test_loss"] == [history[-1]["test/loss/student"]]
        # The published counts are for three channels and 100 classes: the stem has
        # 432 - 144 fewer here, the head 6,500 - 650.
        published = {"expert": 569_780, "student": 180_916}[name]
        assert stage["parameters"] == published - 288 - 5850
        assert stage["seconds"][0] > 0
        assert stage["images_per_second"][0] > 0
        assert folder.name == f"{name}-{stage['fingerprint'][0]}"
        assert len(stage["digest"]) == 1
    assert set(results["versions"]) >= {"kdjax", "jax", "python"}
    assert results["devices"] == ["cpu"]
    config = results["config"]
    assert config["recipe"]["epochs"] == EPOCHS
    assert config["stages"]["student"]["ctkd"]["scratch"] == "wrn-40-1"
    assert config["stages"]["student"]["ctkd"]["beta"] == 62.5


def test_scratch_teacher_retraces_the_expert(whole):
    """Same start, same stream, same recipe, and no gradient from the student."""
    stages = whole[0].results()["stages"]
    expert = stages["expert"]["test_accuracy"]["final"]
    scratch = stages["student"]["others"]["scratch"]["test_accuracy"]["final"]
    assert scratch == pytest.approx(expert, abs=0.01)


def test_output_and_curves(whole):
    from matplotlib.image import imread

    command, out = whole
    lines = out.splitlines()
    for stage in ("expert", "student"):
        told = [line for line in lines if line.startswith(f"{stage} seed 0  epoch ")]
        assert [line.split()[4] for line in told] == [
            f"{epoch + 1}/{EPOCHS}" for epoch in range(EPOCHS)
        ]
    final = command.results()["stages"]["student"]["test_accuracy"]["final"][0]
    (row,) = [line for line in lines if line.startswith("│ student ")]
    assert {"ctkd", "wrn-16-1", "174,778", f"{100 * final:.2f}"} <= set(row.split())
    picture = imread(command.workdir / "curves.png")
    assert picture.shape[:2] == (480, 1440)
    assert len({tuple(color) for row in picture for color in row}) > 20


def test_records_and_events_have_every_epoch_once(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for stage in ("expert", "student"):
        history = records(whole[0].folder(stage))
        assert [record["epoch"] for record in history] == list(range(1, EPOCHS + 1))
        events = EventAccumulator(str(whole[0].folder(stage) / "tensorboard"))
        events.Reload()
        assert set(events.Tags()["scalars"]) == set(history[0])
        for key in history[0]:
            found = [(event.step, event.value) for event in events.Scalars(key)]
            expected = [(record["epoch"], record[key]) for record in history]
            assert [step for step, _ in found] == [step for step, _ in expected]
            values = [value for _, value in expected]
            assert [value for _, value in found] == pytest.approx(values, rel=1e-6)


def test_second_time_finds_everything(straight):
    before = straight.results()
    out, _ = straight.run()
    after = straight.results()
    assert "expert seed 0  found in " in out
    assert "student seed 0  found in " in out
    assert "epoch" not in out.split("Test accuracy")[0]
    assert {**after, "finished": before["finished"]} == before


def test_changed_student_finds_the_expert(straight, changed):
    command, out = changed
    assert "expert seed 0  found in " in out
    assert "expert seed 0  epoch" not in out
    assert "student seed 0  epoch 3/3" in out
    assert command.digests()["expert"] == straight.digests()["expert"]
    assert command.digests()["student"] != straight.digests()["student"]


def test_killed_runs_end_in_the_same_bits(make, straight):
    """Killed within the expert's first epoch, and the student's second."""
    command = make(TINY, OFTEN)

    def kill(stage: str, beyond: int) -> str:
        def ready() -> bool:
            return any(step > beyond for step in command.saved_steps(stage))

        out, _ = command.end_when(ready, signal.SIGKILL, -signal.SIGKILL)
        assert not (command.folder(stage) / "result.json").exists()
        return out

    kill("expert", 0)
    out = kill("student", 7)
    assert "expert seed 0  found in" not in out
    assert "expert seed 0  epoch 1/3" in out
    out, _ = dataclasses.replace(command, args=straight.args).run()
    assert "expert seed 0  found in" in out
    # An epoch that was over by then is not trained again.
    assert "student seed 0  epoch 1/3" not in out
    assert command.digests() == straight.digests()
    for name in ("expert", "student"):
        epochs = [record["epoch"] for record in records(command.folder(name))]
        assert epochs == [1, 2, 3]


def test_sigterm_saves_and_goes_on_to_the_same_bits(terminated, straight, make):
    command, err = terminated
    heard, last = err.splitlines()
    assert heard.startswith("kdjax: SIGTERM received: the run saves and stops")
    assert last == "kdjax: stopped by SIGTERM; the same command continues from here"
    assert command.saved_steps("student")
    again = make(TINY, copy_of=command.workdir)
    again.run()
    assert again.digests() == straight.digests()


@pytest.mark.parametrize("damage", [flip_a_byte, truncate])
def test_damaged_checkpoint_is_refused(terminated, make, damage):
    command = make(TINY, copy_of=terminated[0].workdir)
    step = command.saved_steps("student")[-1]
    checkpoint = command.folder("student") / "checkpoints" / str(step)
    damage(largest(checkpoint))
    assert str(checkpoint) in command.fails()


def test_damaged_teacher_is_refused_and_the_advice_heals(terminated, make, straight):
    command = make(TINY, copy_of=terminated[0].workdir)
    expert = command.folder("expert")
    flip_a_byte(largest(expert / "networks" / "student"))
    assert f"{expert} cannot be used" in (line := command.fails())
    assert "delete that folder" in line
    shutil.rmtree(expert)
    command.run()
    assert command.digests() == straight.digests()


def test_checkpoint_of_another_config_is_refused(terminated, changed, make):
    command = make(TINY, CHANGE, copy_of=terminated[0].workdir)
    own = command.folder("student").name
    other = changed[0].folder("student").name
    command.folder("student").rename(command.workdir / "stages" / other)
    line = command.fails()
    told = ("another config", own.split("-")[1], str(command.folder("student")))
    assert [word for word in told if word not in line] == []


def test_loss_that_is_not_finite_stops(make):
    command = make(TINY, "--config.recipe.learning_rate=1e20")
    _, err = command.run(2)
    assert err.startswith("kdjax: ")
    assert err.count("\n") == 1
    assert "ce/student not finite at step " in err
    assert not list((command.workdir / "stages").glob("student-*"))
