import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import archives
import numpy as np
import pytest
import tensorflow_datasets as tfds
from record_files import RECORD, assert_equal, flip, forbid_decoding
from sklearn.datasets import load_digits

from kdjax.data import prepare, sources, tfds_files
from kdjax.data.subsets import stratified
from kdjax.runtime.errors import UserError

REAL = Path(__file__).parents[2] / "shared/data/tfds"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("KDJAX_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a prepared cifar10 of 60 and 12 images."""
    archive_dir = tmp_path_factory.mktemp("archives")
    archives.write_cifar10(archive_dir)
    data_dir = tmp_path_factory.mktemp("data")
    prepare.prepare("cifar10", data_dir, archive_dir)
    return data_dir


@pytest.fixture
def own(tiny, tmp_path):
    """A copy of the folder `tiny`, and the folder of cifar10's files in it."""
    shutil.copytree(tiny, tmp_path / "data")
    return tmp_path / "data", tmp_path / "data" / "cifar10" / "3.0.2"


@pytest.fixture(scope="module", params=["cifar10", "cifar100"])
def real(request, tmp_path_factory):
    """Real CIFAR images: the data set, and the folder of its cache."""
    if not (REAL / request.param).is_dir():
        pytest.skip(f"no prepared {request.param} beside the repository")
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDJAX_CACHE", str(folder))
        return sources.load(request.param, str(REAL)), folder


class TestDigits:
    def test_every_digit_is_in_one_split(self):
        dataset = sources.load("digits")
        assert dataset.version == "1"
        assert dataset.train.images.shape == (1437, 8, 8, 1)
        assert dataset.test.images.shape == (360, 8, 8, 1)
        original = load_digits()
        rows = np.column_stack([original.data, original.target])
        ours = [
            np.column_stack([split.images.reshape(-1, 64) / (255 / 16), split.labels])
            for split in (dataset.train, dataset.test)
        ]
        ours = np.concatenate(ours)
        # The 17 gray values are 15.9 apart, so rounding cannot merge any two.
        assert sorted(map(tuple, np.round(ours))) == sorted(map(tuple, rows))
        assert dataset.train.images.max() == 255
        assert np.unique(dataset.train.images)[1] == 16  # 1 * 255 / 16 = 15.94

    def test_classes_are_balanced_as_in_the_whole(self):
        dataset = sources.load("digits")
        share = np.bincount(load_digits().target) / 1797
        np.testing.assert_allclose(
            np.bincount(dataset.test.labels), share * 360, atol=1
        )

    def test_constants_are_those_of_the_training_images(self):
        dataset = sources.load("digits")
        pixels = dataset.train.images / 255
        np.testing.assert_allclose(dataset.mean, pixels.mean(), atol=1e-4)
        np.testing.assert_allclose(dataset.std, pixels.std(), atol=1e-4)

    def test_types(self):
        dataset = sources.load("digits", train_size=20)
        for split in (dataset.train, dataset.test):
            assert split.images.dtype == np.uint8
            assert split.labels.dtype == np.int32

    def test_global_random_state_is_neither_used_nor_touched(self):
        np.random.seed(1)
        first = sources.load("digits", train_size=100)
        np.random.seed(2)
        before = np.random.get_state()[1].copy()
        assert_equal(first, sources.load("digits", train_size=100))
        np.testing.assert_array_equal(np.random.get_state()[1], before)


class TestSubsets:
    def test_every_beginning_is_proportional(self):
        labels = np.repeat([0, 1, 2, 7], [500, 301, 150, 7])
        order = stratified(labels, len(labels))
        assert sorted(order) == list(range(len(labels)))
        counts = np.cumsum(labels[order][:, None] == [0, 1, 2, 7], axis=0)
        ideal = np.arange(1, 959)[:, None] * np.array([500, 301, 150, 7]) / 958
        assert np.abs(counts - ideal).max() < 1

    def test_members_of_a_class_are_mixed(self):
        order = stratified(np.zeros(1000, int), 1000)
        assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1

    def test_which_images_they_hold_never_changes(self):
        # Pinned: published results refer to these subsets.
        order = stratified(np.arange(12) % 3, 6)
        assert order.tolist() == [6, 7, 8, 3, 1, 11]

    def test_smaller_subsets_lie_within_larger_ones_in_the_same_order(self):
        whole = sources.load("digits").train
        position = {image.tobytes(): i for i, image in enumerate(whole.images)}
        inner: list[int] = []
        for size in (1, 9, 10, 137, 1436, 1437):
            split = sources.load("digits", train_size=size, test_size=size // 4 + 1)
            rows = [position[image.tobytes()] for image in split.train.images]
            assert rows == sorted(rows)
            assert len(rows) == size
            assert set(inner) < set(rows)
            np.testing.assert_array_equal(split.train.labels, whole.labels[rows])
            assert len(split.test.labels) == size // 4 + 1
            inner = rows

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"train_size": 0}, "train_size of digits must be from 1 to 1437, not 0"),
            ({"train_size": 1438}, "from 1 to 1437, not 1438"),
            ({"test_size": -3}, "test_size of digits must be from 1 to 360, not -3"),
            ({"test_size": 361}, "from 1 to 360, not 361"),
        ],
    )
    def test_impossible_sizes(self, sizes, message):
        with pytest.raises(UserError, match=message):
            sources.load("digits", **sizes)


class TestMistakes:
    def test_unknown_name(self):
        with pytest.raises(UserError, match="'mnist'; choices: digits, cifar10"):
            sources.load("mnist")

    def test_too_large_for_memory(self, tmp_path):
        with pytest.raises(UserError, match=r"'imagenet' does not fit into memory"):
            sources.load("imagenet")
        with pytest.raises(UserError, match="imagenet needs TensorFlow to be prepared"):
            prepare.prepare("imagenet", tmp_path)

    def test_validation_is_kept_from_training(self):
        whole, held = sources.load("digits"), sources.load("digits", validation=100)
        assert held.train_size == whole.train_size - 100
        assert len(held.test.labels) == 100
        pool = {image.tobytes() for image in whole.train.images}
        kept = {image.tobytes() for image in held.test.images}
        assert kept <= pool
        assert not kept & {image.tobytes() for image in held.train.images}
        assert np.ptp(np.bincount(held.test.labels)) <= 1
        with pytest.raises(UserError, match="validation of digits must be from 1 to"):
            sources.load("digits", validation=2000)

    def test_images_of_0_to_1(self):
        plain = sources.load("digits", normalise=False)
        assert (plain.mean, plain.std) == ((0.0,), (1.0,))

    @pytest.mark.parametrize(
        "name", sorted(set(sources.SOURCES) - {"digits", "imagenet"})
    )
    def test_not_prepared(self, name, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # not needed
        folder = tmp_path / "my data"
        with pytest.raises(UserError) as caught:
            sources.load(name, str(folder))
        assert str(caught.value) == (
            f"data set {name!r} not found in "
            f"{folder / sources.SOURCES[name].tfds_name}; provide it with: "
            f"python -m kdjax.data.prepare {name} --data-dir '{folder}'"
        )

    def test_stored_as_tfrecord(self, own):
        data_dir, folder = own
        description = folder / "dataset_info.json"
        info = json.loads(description.read_text())
        description.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
        with pytest.raises(UserError, match=r"is stored as tfrecord, .*TensorFlow"):
            sources.load("cifar10", str(data_dir))

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda f: (f / RECORD).unlink(), r"test: .*No such file"),
            (lambda f: os.truncate(f / RECORD, 100_000), r"test: Corrupted"),
            (lambda f: os.truncate(f / RECORD, 0), r"test: ArrayRecord file should"),
            (lambda f: flip(f / RECORD), r"test: Corrupted .* hash mismatch"),
            (lambda f: (f / "features.json").unlink(), "train: Cannot restore"),
            (
                lambda f: os.truncate(f / "dataset_info.json", 300),
                r"dataset_info.json: Unterminated",
            ),
            (lambda f: (f / "dataset_info.json").write_text("[]"), "dataset_info.json"),
        ],
    )
    def test_damaged_files(self, damage, message, own):
        data_dir, folder = own
        damage(folder)
        with pytest.raises(UserError, match=rf"is damaged \({message}") as caught:
            sources.load("cifar10", str(data_dir))
        text = str(caught.value)
        assert text.startswith(f"data set 'cifar10' in {folder}")
        assert text.endswith(f"kdjax.data.prepare cifar10 --data-dir {data_dir}")
        assert "\n" not in text


class TestFolders:
    def test_default_is_that_of_tfds(self, tiny, monkeypatch):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
        assert len(sources.load("cifar10").test.labels) == 12
        monkeypatch.delenv("TFDS_DATA_DIR")
        monkeypatch.setenv("HOME", str(tiny / "home"))
        assert tfds_files.default_data_dir() == tiny / "home" / "tensorflow_datasets"

    def test_the_newest_version_is_read(self, own):
        data_dir, folder = own
        for other in ("3.0.10", "3.0.9", "4.0.0.incompleteABC", "notes"):
            shutil.copytree(folder, folder.parent / other)
        (folder.parent / "5.0.0").mkdir()  # nothing in it
        prepared = tfds_files.find("cifar10", "cifar10", data_dir)
        assert prepared.version == "3.0.10"
        assert prepared.sizes == {"train": 60, "test": 12}


class TestRealImages:
    def test_counts_and_types(self, real):
        dataset, _ = real
        assert dataset.version == "3.0.2"
        described = json.loads(
            (REAL / dataset.name / "3.0.2" / "dataset_info.json").read_text()
        )
        sizes = {
            split["name"]: sum(map(int, split["shardLengths"]))
            for split in described["splits"]
        }
        assert sizes["train"] >= 20_000
        assert sizes["test"] == 10_000
        for name, n in sizes.items():
            split = getattr(dataset, name)
            assert split.images.shape == (n, 32, 32, 3)
            assert split.images.dtype == np.uint8
            assert split.labels.dtype == np.int32
            per_class = n // dataset.num_classes
            assert (np.bincount(split.labels) == per_class).all()
            assert split.labels.max() + 1 == dataset.num_classes

    def test_constants_fit_the_images(self, real):
        dataset, _ = real
        values = np.arange(256) / 255
        for channel in range(3):
            # From counts: a float32 sum of as many pixels stops at 2**24.
            pixels = dataset.train.images[..., channel]
            share = np.bincount(pixels.ravel(), minlength=256) / pixels.size
            mean = share @ values
            std = np.sqrt(share @ (values - mean) ** 2)
            np.testing.assert_allclose(mean, dataset.mean[channel], atol=0.01)
            np.testing.assert_allclose(std, dataset.std[channel], atol=0.01)

    def test_pixels_are_those_that_tfds_decodes(self, real):
        dataset, _ = real
        builder = tfds.builder_from_directory(REAL / dataset.name / "3.0.2")
        theirs = builder.as_data_source("test")
        for row in range(0, 10_000, 999):
            example = theirs[row]
            np.testing.assert_array_equal(dataset.test.images[row], example["image"])
            assert dataset.test.labels[row] == example["label"]

    def test_subsets_from_the_cache(self, real, monkeypatch):
        dataset, folder = real
        monkeypatch.setenv("KDJAX_CACHE", str(folder))
        forbid_decoding(monkeypatch)
        sizes = {"train_size": 500, "test_size": 10_000}
        part = sources.load(dataset.name, str(REAL), **sizes)
        counts = np.bincount(part.train.labels, minlength=dataset.num_classes)
        assert (counts == 500 // dataset.num_classes).all()
        assert_equal(dataclasses.replace(part, train=dataset.train), dataset)


def test_neither_tensorflow_nor_noise(tiny, tmp_path):
    """A TensorFlow that only leaves a trace stands in for the real one."""
    trace = tmp_path / "imported"
    (tmp_path / "fake" / "tensorflow").mkdir(parents=True)
    (tmp_path / "fake" / "tensorflow" / "__init__.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n__version__ = '2.21.0'\n"
    )
    script = (
        "import sys, absl.logging\n"
        "absl.logging.set_verbosity(absl.logging.INFO)\n"
        "from kdjax.data import sources\n"
        "slow = {'tensorflow_datasets', 'sklearn', 'scipy', 'jax'} & set(sys.modules)\n"
        "assert not slow, slow\n"
        f"assert len(sources.load('cifar10', {str(tiny)!r}).test.labels) == 12\n"
        "assert 'tensorflow_datasets' in sys.modules\n"
    )
    path = os.pathsep.join([str(tmp_path / "fake"), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not trace.exists()
