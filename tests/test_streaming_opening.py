"""Streamed data sets: which are streamed, and how they are opened."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import BROKEN, SIZE, TEST, TRAIN, files

from benchmarks import photos
from kdjax.data import prepare, sources, tfds_files
from kdjax.data.streaming import crop
from kdjax.data.streaming.encoded import Encoded
from kdjax.data.streaming.opening import open_streamed
from kdjax.data.subsets import stratified
from kdjax.runtime.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    photos.write(folder, {split: files(split) for split in BROKEN})
    return folder


@pytest.fixture
def own(data_dir, tmp_path, monkeypatch):
    """A copy of the data, and the folder of its files."""
    monkeypatch.setenv("KDJAX_CACHE", str(tmp_path / "cache"))
    shutil.copytree(data_dir, tmp_path / "data")
    return tmp_path / "data", tmp_path / "data" / "imagenet2012" / "5.1.0"


def open_small(folder, **options):
    options = {"image_size": SIZE, "workers": 0, **options}
    return open_streamed("imagenet", str(folder), **options)


def examples(folder, split):
    """All examples in the order of the files."""
    prepared = tfds_files.find("imagenet", "imagenet2012", Path(folder))
    encoded = Encoded(prepared, split)
    return encoded.read(range(len(encoded)))


class TestOpening:
    def test_what_is_known(self, data_dir):
        with open_small(data_dir) as data:
            assert (data.name, data.version) == ("imagenet", "5.1.0")
            assert data.image_shape == (SIZE, SIZE, 3)
            assert (data.train_size, data.test_size) == (TRAIN, TEST)
            assert data.num_classes == 1000
            assert data.mean == sources.SOURCES["imagenet"].mean
        with open_small(data_dir, normalise=False) as data:
            assert (data.mean, data.std) == ((0.0,) * 3, (1.0,) * 3)

    def test_content_is_the_files_not_their_place(self, data_dir, own):
        content = open_small(data_dir).content
        copy, folder = own
        assert open_small(copy).content == content
        path = folder / "imagenet2012-validation.array_record-00000-of-00001"
        path.write_bytes(path.read_bytes() + b"x")
        assert open_small(copy).content != content

    def test_subsets_are_fixed_and_labels_are_read_once(self, own, monkeypatch, capsys):
        data_dir, _ = own
        found = examples(data_dir, "train")
        labels = np.array([example.label for example in found])
        chosen = np.sort(stratified(labels, 11))
        with open_small(data_dir, train_size=11, test_size=TEST) as data:
            assert (data.train_size, data.test_size) == (11, TEST)
            batch = data.examples(np.arange(11), 0, 0)
        for image, label, i in zip(batch.images, batch.labels, range(11), strict=True):
            shown = found[chosen[i]]
            if shown.name in BROKEN["train"]:
                shown = found[chosen[(i + 1) % 11]]
            expected = data.crop.training(
                shown.content, SIZE, crop.sample_uniform(0, 0, i)
            )
            np.testing.assert_array_equal(image, expected)
            assert label == shown.label
        assert "reading the labels of 26 images (train)" in capsys.readouterr().out
        monkeypatch.setattr(Encoded, "read", None)
        assert open_small(data_dir, train_size=11).train_size == 11

    def test_not_prepared(self, tmp_path):
        steps = (
            r"two steps: put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar .* "
            rf"into {tmp_path}/downloads/manual; .*tensorflow-cpu.* run python -c '.*"
            r"file_format=.*array_record.*\.download_and_prepare\(\)'$"
        )
        with pytest.raises(UserError, match=rf"{tmp_path}/imagenet2012; .*{steps}"):
            open_small(tmp_path)
        with pytest.raises(UserError, match=rf"imagenet needs TensorFlow .*{steps}"):
            prepare.prepare("imagenet", tmp_path)

    def test_prepared_elsewhere(self, data_dir):
        line = prepare.prepare("imagenet", data_dir)
        assert line.startswith("imagenet: already prepared, 26 train and 9 validation")

    def test_missing_file_or_split(self, own):
        data_dir, folder = own
        path = folder / "imagenet2012-train.array_record-00000-of-00001"
        path.unlink()
        with pytest.raises(UserError, match=r"is damaged \(train: .*No such file"):
            open_small(data_dir)
        info = folder / "dataset_info.json"
        info.write_text(info.read_text().replace('"train"', '"test"'))
        with pytest.raises(
            UserError, match="has no split 'train' but test, validation"
        ):
            open_small(data_dir)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("cifar10", {}, "'cifar10' is not streamed: it is read into memory"),
            ("mnist", {}, "unknown data set 'mnist'; choices: digits"),
            ("imagenet", {"broken": "hide"}, "'hide'; choices: skip, stop"),
            ("imagenet", {"workers": -1}, "workers=-1 must be at least 0"),
            ("imagenet", {"image_size": 4}, "image_size=4 must be at least 8"),
            ("imagenet", {"train_size": 27}, "train_size of imagenet .* 1 to 26, not"),
            ("imagenet", {"test_size": 0}, "test_size of imagenet must be from 1 to 9"),
        ],
    )
    def test_mistakes(self, data_dir, name, options, message):
        with pytest.raises(UserError, match=message):
            open_streamed(name, str(data_dir), **options)
