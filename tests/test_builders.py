import io
import json

import archives
import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.datasets.svhn_cropped import svhn_cropped_dataset_builder
from tensorflow_datasets.image_classification import cifar

from kdjax.data import prepare, sources
from kdjax.data.builders import BUILDERS
from kdjax.runtime.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def archive_dir(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    return folder


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


def stored(folder, split):
    """Returns the records as they are on disk, images still encoded."""
    source = tfds.builder_from_directory(folder).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return [source[i] for i in range(len(source))]


def test_the_table_holds_every_data_set_that_needs_files():
    assert set(BUILDERS) == {
        source.tfds_name
        for source in sources.SOURCES.values()
        if source.tfds_name and source.in_memory
    }


@pytest.mark.parametrize(
    ("name", "official"),
    [
        ("cifar10", cifar.Cifar10),
        ("cifar100", cifar.Cifar100),
        ("svhn_cropped", svhn_cropped_dataset_builder.Builder),
    ],
)
def test_builders_describe_their_data_as_the_official_ones_do(name, official, tmp_path):
    ours = BUILDERS[name](data_dir=tmp_path)
    theirs = official(data_dir=tmp_path)
    assert (ours.name, ours.version) == (theirs.name, theirs.version)
    assert ours.data_dir == theirs.data_dir
    assert ours.info.features.to_json() == theirs.info.features.to_json()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name, archive_dir, data_dir):
    records = getattr(archives, f"write_{name}")(archive_dir)
    prepare.prepare(name, data_dir, archive_dir)
    dataset = sources.load(name, str(data_dir))
    labels_per_record = records["train"].shape[1] - 3072
    folder = data_dir / name / "3.0.2"
    for split, read in (("train", dataset.train), ("test", dataset.test)):
        raw = stored(folder, split)
        rows = [int(row["id"].decode().removeprefix(f"{split}_")) for row in raw]
        assert sorted(rows) == list(range(len(records[split])))
        assert {len(row["id"]) for row in raw} == {len(split) + 6}
        expected = records[split][rows]
        planes = expected[:, labels_per_record:].reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(read.images, np.moveaxis(planes, 1, -1))
        np.testing.assert_array_equal(read.labels, expected[:, labels_per_record - 1])
        if name == "cifar100":
            coarse = [row["coarse_label"] for row in raw]
            np.testing.assert_array_equal(coarse, expected[:, 0])
    names = (folder / "label.labels.txt").read_text().splitlines()
    assert names[3] == ("class 3" if name == "cifar10" else "f3")


def test_cifar_keeps_the_order_of_the_official_files(archive_dir, data_dir):
    archives.write_cifar10(archive_dir)
    prepare.prepare("cifar10", data_dir, archive_dir)
    order = {
        split: [
            index
            for row in stored(data_dir / "cifar10" / "3.0.2", split)
            if (index := int(row["id"][-5:])) < 12
        ]
        for split in ("train", "test")
    }
    # How the first twelve images follow one another in the official cifar10/3.0.2.
    assert order["train"] == [6, 5, 4, 10, 0, 8, 3, 1, 9, 7, 11, 2]
    assert order["test"] == [6, 1, 8, 9, 4, 3, 2, 7, 10, 5, 11, 0]


def test_svhn(archive_dir, data_dir):
    content = archives.write_svhn(archive_dir)
    prepare.prepare("svhn", data_dir, archive_dir)
    dataset = sources.load("svhn", str(data_dir))
    for split, read in (("train", dataset.train), ("test", dataset.test)):
        raw = stored(data_dir / "svhn_cropped" / "3.1.0", split)
        rows = [int(row["id"].decode().removeprefix(f"{split}_")) for row in raw]
        assert {len(row["id"]) for row in raw} == {len(split) + 7}
        images, labels = content[split]
        np.testing.assert_array_equal(read.images, images[rows])
        np.testing.assert_array_equal(
            read.labels, np.where(labels == 10, 0, labels)[rows]
        )


def test_tiny_imagenet(archive_dir, data_dir):
    content = archives.write_tiny_imagenet(archive_dir)
    prepare.prepare("tiny_imagenet", data_dir, archive_dir)
    dataset = sources.load("tiny_imagenet", str(data_dir))
    folder = data_dir / "tiny_imagenet" / "1.0.0"
    assert (folder / "label.labels.txt").read_text().split() == archives.WNIDS
    for split, read in (("train", dataset.train), ("validation", dataset.test)):
        raw = stored(folder, split)
        assert {row["id"].decode(): row["image"] for row in raw} == {
            name: jpeg for name, (jpeg, _) in content[split].items()
        }
        for row, image, label in zip(raw, read.images, read.labels, strict=True):
            jpeg, wnid = content[split][row["id"].decode()]
            decoded = np.asarray(Image.open(io.BytesIO(jpeg)))
            if decoded.ndim == 2:
                decoded = np.stack([decoded] * 3, axis=-1)
            np.testing.assert_array_equal(image, decoded)
            assert label == archives.WNIDS.index(wnid)
    assert dataset.train.images.shape == (12, 64, 64, 3)


def test_a_split_above_the_memory_limit_of_tfds(archive_dir, data_dir, monkeypatch):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    archives.write_cifar10(archive_dir)
    prepare.prepare("cifar10", data_dir, archive_dir)
    assert len(sources.load("cifar10", str(data_dir)).train.labels) == 60


def _truncate(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _truncated(write, name):
    def break_it(folder):
        write(folder)
        _truncate(folder, name)

    return break_it


def _bad_svhn_labels(folder):
    content = archives.write_svhn(folder)
    images, labels = content["train"]
    scipy.io.savemat(
        folder / "train_32x32.mat",
        {"X": np.moveaxis(images, 0, -1), "y": labels[:, None] - 1},
    )


def _not_a_mat(folder):
    archives.write_svhn(folder)
    (folder / "test_32x32.mat").write_bytes(b"<html>not found</html>" * 100)


def _flipped_gzip(folder):
    archives.write_cifar10(folder)
    path = folder / "cifar-10-binary.tar.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # random pixels are stored as they are
    path.write_bytes(content)


def _flipped_zip(folder):
    content = archives.write_tiny_imagenet(folder)
    jpeg = next(iter(content["validation"].values()))[0]
    path = folder / "tiny-imagenet-200.zip"
    other = jpeg[:300] + bytes([jpeg[300] ^ 1]) + jpeg[301:]
    path.write_bytes(path.read_bytes().replace(jpeg, other))


@pytest.mark.parametrize(
    ("name", "break_it", "message"),
    [
        (
            "cifar10",
            lambda _: None,
            r"^no cifar-10-binary.tar.gz in .*get it at https://www",
        ),
        ("svhn", lambda _: None, r"^no train_32x32.mat in .*archives"),
        (
            "cifar10",
            _truncated(archives.write_cifar10, "cifar-10-binary.tar.gz"),
            r"cifar-10-binary.tar.gz is damaged: Compressed file ended before the end",
        ),
        ("cifar10", _flipped_gzip, r"cifar-10-binary.tar.gz is damaged: CRC check"),
        (
            "cifar10",
            lambda folder: archives.write_cifar10(folder, data_batch_4=None),
            r"damaged: it lacks cifar-10-batches-bin/data_batch_4.bin$",
        ),
        (
            "cifar10",
            lambda folder: archives.write_cifar10(folder, test_batch=b"x" * 4000),
            r"cifar-10-binary.tar.gz is damaged: cannot reshape array of size 4000",
        ),
        (
            "svhn",
            _truncated(archives.write_svhn, "train_32x32.mat"),
            r"train_32x32.mat is damaged: ",
        ),
        ("svhn", _not_a_mat, r"test_32x32.mat is damaged: "),
        ("svhn", _bad_svhn_labels, r"damaged: it holds no 32x32 images with labels"),
        (
            "tiny_imagenet",
            _truncated(archives.write_tiny_imagenet, "tiny-imagenet-200.zip"),
            r"tiny-imagenet-200.zip is damaged: File is not a zip file",
        ),
        ("tiny_imagenet", _flipped_zip, r"damaged: Bad CRC-32 for file .*/val_0.JPEG"),
    ],
)
def test_bad_archives(name, break_it, message, archive_dir, data_dir):
    break_it(archive_dir)
    with pytest.raises(UserError, match=message) as caught:
        prepare.prepare(name, data_dir, archive_dir)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not found"):  # nothing half-made is left
        sources.load(name, str(data_dir))


class TestCommand:
    def test_prepares_once(self, archive_dir, data_dir, capsys):
        archives.write_cifar10(archive_dir)
        command = ["cifar10", "--data-dir", str(data_dir)]
        command += ["--archive-dir", str(archive_dir)]
        folder = data_dir / "cifar10" / "3.0.2"
        assert prepare.main(command) == 0
        counts = f"60 train and 12 test images in {folder}\n"
        assert capsys.readouterr() == (f"cifar10: {counts}", "")
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert prepare.main(command) == 0
        assert capsys.readouterr() == (f"cifar10: already prepared, {counts}", "")
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    def test_digits_need_nothing(self, data_dir, capsys):
        assert prepare.main(["digits", "--data-dir", str(data_dir)]) == 0
        assert "nothing to prepare" in capsys.readouterr().out
        assert not data_dir.exists()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("cifar11", "unknown data set 'cifar11'; choices: digits, cifar10, "),
            ("svhn", "no train_32x32.mat in "),
        ],
    )
    def test_mistakes(self, name, message, archive_dir, data_dir, capsys):
        command = [name, "--data-dir", str(data_dir), "--archive-dir", str(archive_dir)]
        assert prepare.main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(message)
        assert err.count("\n") == 1

    def test_a_data_dir_that_is_a_file(self, archive_dir, tmp_path):
        archives.write_cifar10(archive_dir)
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"^cannot write cifar10 to .*file: "):
            prepare.prepare("cifar10", tmp_path / "file", archive_dir)

    def test_a_folder_without_a_data_set(self, archive_dir, data_dir):
        archives.write_cifar10(archive_dir)
        (data_dir / "cifar10" / "3.0.2").mkdir(parents=True)
        with pytest.raises(UserError, match=r"3.0.2 exists but holds no data set"):
            prepare.prepare("cifar10", data_dir, archive_dir)

    def test_files_in_another_format(self, archive_dir, data_dir):
        folder = data_dir / "cifar10" / "3.0.2"
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text(
            json.dumps({"fileFormat": "tfrecord", "splits": []})
        )
        with pytest.raises(UserError, match="is stored as tfrecord"):
            prepare.prepare("cifar10", data_dir, archive_dir)
