"""The analysis of a finished experiment: numbers by hand, pictures, clear errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import in_process
import jax
import numpy as np
import pytest

from configs import ctkd
from kdjax import main as training
from kdjax import models
from kdjax.analysis import __main__ as command
from kdjax.analysis import features, overlap
from kdjax.data import sources
from kdjax.experiment import report
from kdjax.runtime.errors import UserError
from kdjax.train.loop import load_network

ROOT = Path(__file__).parents[1]
# TAKD's chain of three, the last with a second seed and as large as the first.
CONFIG = (
    "--config=configs/dgkd.py:digits,path=plain2/plain3/plain4,method=takd,augment=none,"
    "epochs=15,batch_size=16,train_size=64,test_size=64,seeds=2,chain_seeds=1"
)
CHANGES = (
    "--config.stages.S4.model=plain-2",
    "--config.recipe.learning_rate=0.05",
    "--config.saving.evaluate_every=15",
)
MODELS = {"T2": "plain-2", "A3": "plain-3", "S4": "plain-2"}
# What each pair's smaller network is: S4 is as large as T2, and taught.
SMALLER = {("A3", "T2"): "T2", ("S4", "A3"): "S4", ("S4", "T2"): "S4"}


def test_overlap_by_hand():
    labels = np.array([0, 0, 1, 1, 2, 2])
    small = np.array([0, 1, 0, 0, 1, 2])  # wrong at 1, 2, 3 and 4
    large = np.array([1, 2, 0, 1, 2, 2])  # wrong at 0, 1 and 2
    assert overlap.error_overlap(small, large, labels) == 2 / 4
    assert overlap.error_overlap(large, small, labels) == 2 / 3


def test_overlap_at_the_edges():
    labels = np.arange(4)
    wrong = (labels + 1) % 4
    assert overlap.error_overlap(labels, wrong, labels) is None
    assert overlap.error_overlap(wrong, labels, labels) == 0
    assert overlap.error_overlap(wrong, (labels + 2) % 4, labels) == 1
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
        overlap.error_overlap(wrong, labels[:3], labels)
    with pytest.raises(ValueError, match=r"\(4, 1\)"):
        overlap.error_overlap(wrong[:, None], wrong[:, None], labels[:, None])


def test_median_of_the_seeds_that_make_errors():
    pair = overlap.Overlap("S", "T", "S", True, [0.5, None, 0.75], [0.1] * 3)
    assert pair.median == 0.625
    none = overlap.Overlap("S", "T", "S", True, [None], [0.0])
    assert none.summary() == {
        "each": [None],
        "median": None,
        "smaller": "S",
        "by_chance": [0.0],
    }


def test_tsne_keeps_apart_what_is_apart(rng):
    labels = np.arange(90) % 3
    seen = rng.normal(size=(90, 8)) + 10 * np.eye(8)[labels]
    points = features.embed(seen.astype(np.float32))
    np.testing.assert_array_equal(points, features.embed(seen.astype(np.float32)))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(1)] == labels).all()
    assert not features.embed(np.ones((40, 8))).any()


def test_tsne_draws_ten_classes_at_most():
    labels = np.arange(1000) % 100
    chosen = features.choose(labels, 50)
    assert len(set(chosen)) == 50
    assert (labels[chosen] < 10).all()
    np.testing.assert_array_equal(chosen, features.choose(labels, 50))
    assert len(features.choose(labels, 500)) == 100
    with pytest.raises(UserError, match=r"more than 30 images .* not 30"):
        features.choose(labels, 30)


def test_a_pair_without_errors_is_drawn(tmp_path):
    pair = overlap.Overlap("S", "T", "S", True, [None, None], [0.0, 0.0])
    overlap.plot_overlap([pair], tmp_path / "overlap.png")
    assert (tmp_path / "overlap.png").stat().st_size > 0


def test_the_command_loads_nothing_before_its_arguments_are_right():
    code = (
        "import sys; from kdjax.analysis.__main__ import main; assert main([]) == 2;"
        "assert not {'jax', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.fixture(autouse=True, scope="module")
def _in_this_process():
    """From the repository's root, without signal handlers or cache."""
    with pytest.MonkeyPatch.context() as patch:
        in_process.enter(patch, ROOT)
        yield


@pytest.fixture(scope="module")
def trained(_in_this_process, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("analysis")
    assert training.main(["kdjax", CONFIG, *CHANGES, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture(scope="module")
def analysed(trained, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("analysed")
    shutil.copytree(trained, workdir, dirs_exist_ok=True)
    assert command.main([str(workdir)]) == 0
    return workdir


def read(workdir):
    return json.loads((workdir / "results.json").read_text())


def errors(workdir, stage, seed):
    """Returns which test images a replica gets wrong, without the analysis."""
    fingerprint = read(workdir)["stages"][stage]["fingerprint"][seed]
    (folder,) = (workdir / "stages").glob(f"*-{fingerprint}")
    data = sources.load("digits", train_size=64, test_size=64)
    images = (data.test.images / np.float32(255) - data.mean[0]) / data.std[0]
    images = images.astype(np.float32)
    variables = load_network(folder, MODELS[stage], 10, (8, 8, 1))
    model = models.create(MODELS[stage], 10)
    outputs = jax.jit(lambda: model.apply(variables, images, train=False))()
    wrong = np.asarray(outputs.logits).argmax(1) != data.test.labels
    # What training said of the same network.
    final = read(workdir)["stages"][stage]["test_accuracy"]["final"][seed]
    assert final == pytest.approx(1 - wrong.mean(), rel=1e-6)
    return set(np.flatnonzero(wrong).tolist())


def test_results_have_every_pair_and_keep_the_rest(trained, analysed):
    before, after = read(trained), read(analysed)
    wrong = {
        (name, seed): errors(trained, name, seed)
        for name, stage in before["stages"].items()
        for seed in range(len(stage["fingerprint"]))
    }
    found = {
        (name, guide): part
        for name, stage in after["stages"].items()
        for guide, part in stage.pop("error_overlap").items()
    }
    assert after == before
    assert {pair: part["smaller"] for pair, part in found.items()} == SMALLER
    shares = []
    for (taught, guide), part in found.items():
        seeds = len(before["stages"][taught]["fingerprint"])
        assert len(part["each"]) == len(part["by_chance"]) == seeds
        for seed in range(seeds):
            # The guides have one replica each.
            sets = {taught: wrong[taught, seed], guide: wrong[guide, 0]}
            small = sets.pop(part["smaller"])
            (large,) = sets.values()
            shares.append(len(small & large) / len(small))
            assert part["each"][seed] == pytest.approx(shares[-1], rel=1e-12)
            assert part["by_chance"][seed] == len(large) / 64
        assert part["median"] == pytest.approx(np.median(part["each"]), rel=1e-12)
    # The networks of the test are neither perfect nor alike.
    assert len(shares) == 5
    assert len(set(shares)) > 2


def test_pictures(analysed):
    from matplotlib.image import imread

    for name in ("error_overlap.png", "tsne.png"):
        picture = imread(analysed / name)
        assert picture.shape[1] > 700
        assert len(np.unique(picture[..., 0])) > 20


def test_chosen_stages_without_tsne(copied):
    assert command.main([str(copied), "--stages=A3", "--examples=0"]) == 0
    stages = read(copied)["stages"]
    assert [name for name in stages if "error_overlap" in stages[name]] == ["A3"]
    assert list(stages["A3"]["error_overlap"]) == ["T2"]
    assert (copied / "error_overlap.png").exists()
    assert not (copied / "tsne.png").exists()


@pytest.fixture
def error(capsys):
    """Runs a command that must fail cleanly; returns its one line."""

    def run(*args: object) -> str:
        capsys.readouterr()
        assert command.main([str(arg) for arg in args]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("kdjax: ")
        assert err.count("\n") == 1
        return err

    return run


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ([], "workdir"),
        (["--examples=x"], "'x'"),
        (["--examples=-1"], "--examples=-1 is negative"),
        (["--depth=1"], "--depth=1"),
    ],
)
def test_wrong_arguments(error, tmp_path, args, word):
    assert word in error(*([tmp_path, *args] if args else []))


def test_no_results(error, tmp_path):
    assert "results.json not found" in error(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "results.json cannot be read"),
        ("\xff", "results.json cannot be read"),
        ("[]", "has no 'config'"),
        ('{"config": {}}', "has no 'stages'"),
        ('{"config": {}, "stages": {}}', "'data' is missing"),
    ],
)
def test_damaged_results(error, tmp_path, content, word):
    (tmp_path / "results.json").write_text(content, encoding="latin-1")
    assert word in error(tmp_path)


def test_another_folder_of_data_sets(error, tmp_path):
    results = {"config": ctkd.get_config("cifar10").to_dict(), "stages": {}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    folder = tmp_path / "data"
    assert f"'cifar10' not found in {folder}" in error(tmp_path, f"--data-dir={folder}")


def test_a_folder_that_cannot_be_written(error, tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text('{"config": {}, "stages": {}}')
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert f"workdir {tmp_path} cannot be written" in error(tmp_path)


def test_networks_that_are_not_there(error, copied):
    before = read(copied)
    assert "'nope'; choices: T2, A3, S4" in error(copied, "--stages=A3,nope")
    assert "not 20" in error(copied, "--examples=20")
    fingerprint = before["stages"]["S4"]["fingerprint"][1]
    (folder,) = (copied / "stages").glob(f"S4-{fingerprint}")
    (folder / "result.json").unlink()
    assert "S4 seed 1 is not finished" in error(copied)
    assert read(copied) == before
    # Which A3 does not need.
    assert command.main([str(copied), "--stages=A3", "--examples=0"]) == 0


def test_a_damaged_network(error, copied):
    (folder,) = (copied / "stages").glob("T2-*")
    # Every byte: which of its data files orbax reads, and where an array lies in
    # them, differs from run to run, so that one flipped byte may belong to nothing.
    for path in (folder / "networks").rglob("d/*"):
        path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()))
    assert f"{folder} cannot be used" in error(copied, "--stages=A3")


@pytest.mark.parametrize("count", [1, 10, 11, 20, 21, 40])
def test_every_network_has_a_colour_of_its_own(count):
    assert len({tuple(colour) for colour in report._colours(count)}) == count


@pytest.mark.parametrize(
    ("classes", "legend"),
    [((), ["class 0", "1", "wrong"]), (("cat", "dog"), ["cat", "dog", "wrong"])],
)
def test_tsne_names_the_classes(rng, classes, legend):
    labels = np.arange(8) % 2
    panel = features.Panel("net", rng.normal(size=(8, 2)), labels, labels == 1)
    figure = features.draw_tsne([panel], classes=classes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == legend
