"""The search's trials: pruning, resume, refusals, and one real sweep."""

import fcntl
import functools
import re
import shlex
import signal

import in_process
import numpy as np
import optuna
import pytest
from sweeps import CONFIG, command, refused

from kdjax.data import sources
from kdjax.experiment.flags import parse_flags
from kdjax.experiment.run import Run
from kdjax.runtime.errors import NotFiniteError, UserError
from kdjax.runtime.signals import Interrupt, Interrupted
from kdjax.sweep import trials

TRAIN = "Train the best setting on all training images with:"


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch, request):
    """From the repository's root, without signal handlers or a cache."""
    in_process.enter(monkeypatch, request.config.rootpath)


class Fake:
    """Stands in for `Run`: the accuracy is a function of the setting.

    `before` is called with trial and epoch before the student's epoch is reported.
    """

    def __init__(self, before=lambda run, epoch: None):
        self.before = before
        self.runs: list[tuple[float, float]] = []
        self.epochs: list[list[int]] = []

    def accuracy(self, setting, epoch):
        alpha, temperature = setting
        return (1 - (alpha - 0.6) ** 2 - (temperature / 10 - 0.4) ** 2) * epoch / 8

    def __call__(self, parsed, workdir, interrupt, observe=None):
        self._parsed, self._observe = parsed, observe
        assert parsed.data["validation"] > 0
        assert parsed.data["test_size"] is None
        workdir.mkdir(parents=True, exist_ok=True)
        return self

    def run(self):
        *_, name = self._parsed.stages
        method = self._parsed.stages[name].method
        setting = method.alpha, method.temperature
        self.runs.append(setting)
        self.epochs.append([])
        # Neither the teacher nor the second seed is reported: both would be the best.
        for stage, seed in (("T3", 0), ("T3", 1)):
            self._observe(stage, seed, {"epoch": 1, "test/accuracy/student": 1.0})
        for epoch in range(1, 9):
            self.before(len(self.runs) - 1, epoch)
            self.epochs[-1].append(epoch)
            record = {"epoch": epoch}
            if epoch in (1, 3, 8):  # evaluated
                record["test/accuracy/student"] = self.accuracy(setting, epoch)
            self._observe(name, 0, record)
            self._observe(name, 1, {"epoch": epoch, "test/accuracy/student": 1.0})
        final = self.accuracy(setting, 8)
        return {"stages": {name: {"test_accuracy": {"median": final}}}}


@pytest.fixture
def fake(monkeypatch):
    """Puts a stand-in for `Run` in its place."""

    def put(before=lambda run, epoch: None) -> Fake:
        run = Fake(before)
        monkeypatch.setattr("kdjax.experiment.run.Run", run)
        return run

    return put


def rows(workdir):
    """Returns state, parameters and value of the trials on file."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{workdir / 'sweep.db'}")
    study = optuna.load_study(study_name="sweep", storage=storage)
    found = [(t.state.name, t.params, t.value) for t in study.get_trials()]
    storage.remove_session()
    storage.engine.dispose()
    return found


@pytest.fixture
def error(tmp_path, capsys):
    return functools.partial(refused, capsys, tmp_path / "w")


def test_best_of_all_trials(fake, tmp_path, capsys):
    run = fake()
    assert command(tmp_path, "--trials=4") == 0
    assert len(run.runs) == 4
    assert len(set(run.runs)) == 4
    out = capsys.readouterr().out
    for number, (alpha, temperature) in enumerate(run.runs):
        accuracy = 100 * run.accuracy((alpha, temperature), 8)
        line = f"trial {number}  lambda={alpha} temperature={temperature:g}  "
        assert f"{line}{accuracy:.2f} %" in out
    alpha, temperature = max(run.runs, key=lambda setting: run.accuracy(setting, 8))
    folder = tmp_path / "best"
    *_, before, last = out.splitlines()
    assert before == TRAIN
    line = f"{CONFIG},lambda={alpha},temperature={temperature:g}"
    assert last == f"python -m kdjax.main --config {line} --workdir {folder}"
    # Again: nothing is left to run, and the answer is the same.
    assert command(tmp_path, "--trials=4") == 0
    assert len(run.runs) == 4
    assert capsys.readouterr().out.splitlines()[-1] == last


@pytest.fixture(scope="module")
def whole(tmp_path_factory, request):
    """A sweep of twelve trials that nothing stopped: its runs, and its rows."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        patch.setattr(Interrupt, "install", lambda self: None)
        patch.setattr("kdjax.runtime.backend.use_compilation_cache", lambda: None)
        patch.setattr("kdjax.experiment.run.Run", run := Fake())
        assert command(folder, "--trials=12") == 0
    return run, rows(folder)


def test_more_trials_are_those_of_one_long_sweep(fake, whole, tmp_path):
    run = fake()
    assert command(tmp_path, "--trials=3") == 0
    assert command(tmp_path, "--trials=12") == 0
    assert run.runs == whole[0].runs
    assert rows(tmp_path) == whole[1]


def test_seed(fake, whole, tmp_path):
    run = fake()
    assert command(tmp_path, "--trials=2", "--seed=1") == 0
    assert not set(run.runs) & set(whole[0].runs)


@pytest.mark.parametrize(
    ("stop", "epoch"), [(Interrupted(signal.SIGTERM), 5), (SystemExit(), 1)]
)
def test_stopped_trial_goes_on(fake, whole, tmp_path, capsys, stop, epoch):
    """After a signal, and after a process that ended as if killed."""

    def before(run, now):
        if (run, now) == (6, epoch):
            raise stop

    run = fake(before)
    if isinstance(stop, Interrupted):
        assert command(tmp_path, "--trials=9") == 143
        assert "SIGTERM; the same command continues" in capsys.readouterr().err
    else:
        with pytest.raises(SystemExit):
            command(tmp_path, "--trials=9")
    assert [state for state, _, _ in rows(tmp_path)][6:] == ["RUNNING"]
    again = fake()
    assert command(tmp_path, "--trials=9") == 0
    assert again.runs[0] == run.runs[6]
    assert run.runs[:6] + again.runs == whole[0].runs[:9]
    assert rows(tmp_path) == whole[1][:9]


def test_pruned_by_the_students_accuracy(whole):
    """Compared with earlier trials, from a quarter of the epochs on."""
    run, found = whole
    states = [state for state, _, _ in found]
    assert {"COMPLETE", "PRUNED"} == set(states)
    complete = []
    for setting, epochs, state in zip(run.runs, run.epochs, states, strict=True):
        # The fake's order of settings is the same in all epochs.
        score = run.accuracy(setting, 8)
        worse = len(complete) >= 5 and score < np.median(complete)
        assert (state == "PRUNED") == worse
        assert epochs[-1] == (3 if worse else 8)
        if not worse:
            complete.append(score)


def test_diverged_trial_is_pruned(fake, tmp_path, capsys):
    def before(run, epoch):
        if run == 1 and epoch == 2:
            raise NotFiniteError("kd/T3 not finite at step 7")

    fake(before)
    bank = tmp_path / "bank"  # what the student would have read on
    bank.mkdir()
    assert command(tmp_path, "--trials=1") == 0
    assert bank.exists()
    assert command(tmp_path, "--trials=3") == 0
    assert not bank.exists()
    assert "kd/T3 not finite at step 7" in capsys.readouterr().out
    states = [state for state, _, _ in rows(tmp_path)]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE"]


def test_nothing_reaches_the_end(fake, tmp_path, capsys):
    def before(run, epoch):
        raise NotFiniteError("kd/T3 not finite at step 7")

    fake(before)
    assert command(tmp_path, "--trials=2") == 2
    assert "no trial reached the end: kd/T3 not finite" in capsys.readouterr().err


def test_other_mistakes_end_the_sweep(fake, tmp_path, capsys):
    def before(run, epoch):
        raise UserError("the disk is gone")

    fake(before)
    assert command(tmp_path, "--trials=2") == 2
    assert capsys.readouterr().err == "kdjax: the disk is gone\n"
    # The mended command is no other sweep: nothing has come of the first one.
    run = fake()
    mended = ("--trials=1", "--search=lambda=0.5:0.6", "--config.data.dir=there")
    assert command(tmp_path, *mended) == 0
    assert [state for state, _, _ in rows(tmp_path)] == ["COMPLETE"]
    assert 0.5 <= run.runs[0][0] <= 0.6


@pytest.mark.parametrize(
    ("args", "config", "words"),
    [
        ((), f"{CONFIG},batch_size=32", ["config", "batch_size=32"]),
        (("--config.recipe.epochs=9",), CONFIG, ["config", "epochs=9"]),
        (("--search=lambda=0.3:0.9",), CONFIG, ["search", "temperature", "0.3:0.9"]),
        (("--validation=100",), CONFIG, ["validation", "143", "100"]),
        (("--seed=1",), CONFIG, ["seed", "0", "1"]),
    ],
)
def test_another_sweep_is_refused(fake, error, tmp_path, capsys, args, config, words):
    run = fake()
    assert command(tmp_path / "w", "--trials=1") == 0
    capsys.readouterr()
    line = error("--trials=2", *args, config=config)
    for word in (*words, "sweep.db", "choose another --workdir"):
        assert word in line
    assert len(run.runs) == 1


def test_folder_in_use_damaged_or_closed(fake, error, tmp_path):
    fake()
    folder = tmp_path / "w"
    folder.mkdir()
    with open(folder / "sweep.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use by another process" in error()
    (folder / "sweep.db").write_text("not a database" * 100)
    assert "not a database" in error()
    assert (folder / "sweep.db").read_text() == "not a database" * 100


def test_only_trials_imports_optuna(request):
    files = (request.config.rootpath / "kdjax").rglob("*.py")
    importing = [
        file.name
        for file in files
        if re.search(
            r"^\s*(import|from) (optuna|kdjax.sweep.trials)", file.read_text(), re.M
        )
    ]
    assert sorted(set(importing) - {"__main__.py"}) == ["trials.py"]


@pytest.mark.slow
def test_real_sweep(tmp_path, monkeypatch, capsys):
    """Stopped and resumed, then pruned: one teacher for all, no test image is read."""
    arg = "digits,path=plain3/plain2,epochs=2,batch_size=32,train_size=96,test_size=40"
    config = f"configs/dgkd.py:{arg}"
    everything, load, loaded = sources.load("digits").train, sources.load, []
    seen: list[tuple[str, int]] = []
    runs = []

    def watched(*args, **kwargs):
        loaded.append(load(*args, **kwargs))
        return loaded[-1]

    def observer(trial, student):
        inner = trials_observer(trial, student)

        def observe(stage, seed, record):
            seen.append((stage, record["epoch"]))
            inner(stage, seed, record)
            if seen == [("T3", 1), ("T3", 2), ("S2", 1)]:
                runs[-1]._interrupt.number = signal.SIGTERM
            if trial.number == 1:
                raise optuna.TrialPruned("as told")

        return observe

    class Watched(Run):
        def __init__(self, *args):
            super().__init__(*args)
            runs.append(self)

    trials_observer = trials.observer
    monkeypatch.setattr(trials, "observer", observer)
    monkeypatch.setattr(sources, "load", watched)
    monkeypatch.setattr("kdjax.experiment.run.Run", Watched)

    assert command(tmp_path, "--trials=2", config=config) == 143
    assert [state for state, _, _ in rows(tmp_path)] == ["RUNNING"]
    assert command(tmp_path, "--trials=2", config=config) == 0

    assert seen[3:] == [("S2", 2), ("S2", 1)]
    assert len(list((tmp_path / "stages").glob("T3-*"))) == 1
    assert len(list((tmp_path / "stages").glob("S2-*"))) == 2
    assert [state for state, _, _ in rows(tmp_path)] == ["COMPLETE", "PRUNED"]
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert parse_flags(words[2:]).config["data"]["validation"] == 0

    training = {image.tobytes() for image in everything.images}
    assert len(loaded) == 5
    for dataset in loaded:
        assert len(dataset.train.labels) == 96
        held = {image.tobytes() for image in dataset.test.images}
        assert len(dataset.test.labels) == 143
        assert held <= training
        assert not held & {image.tobytes() for image in dataset.train.images}
