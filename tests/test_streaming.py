"""Streamed data: the same images in any layout, and what happens to broken ones."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import BROKEN, SIZE, TRAIN, files, jpeg, slope

from benchmarks import photos
from kdjax.data import tfds_files
from kdjax.data.streaming import crop
from kdjax.data.streaming.batches import BatchMaker
from kdjax.data.streaming.encoded import Encoded, Example
from kdjax.data.streaming.opening import open_streamed
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


def joined(batches):
    """Images, labels and index of batches one after the other."""
    found = [(batch.images, batch.labels, batch.index) for batch in batches]
    return [np.concatenate(part) for part in zip(*found, strict=True)]


def assert_equal(one, other):
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype


ORDER = np.random.default_rng(5).permutation(TRAIN)


class TestTraining:
    def test_what_a_batch_is(self, data_dir):
        found = examples(data_dir, "train")
        with open_small(data_dir) as data:
            batches = list(data.train(ORDER, 9, 2, 8))
        assert len(batches) == 3
        images, labels, index = joined(batches)
        assert (images.dtype, images.shape) == (np.uint8, (24, SIZE, SIZE, 3))
        assert labels.dtype == index.dtype == np.int32
        np.testing.assert_array_equal(index, ORDER[:24])
        for image, label, i in zip(images, labels, index, strict=True):
            shown = found[i]
            if shown.name in BROKEN["train"]:
                shown = found[(i + 1) % TRAIN]
            assert label == shown.label
            uniform = crop.sample_uniform(9, 2, i)
            expected = data.crop.training(shown.content, SIZE, uniform)
            np.testing.assert_array_equal(image, expected)

    def test_layout_changes_nothing(self, data_dir):
        with open_small(data_dir) as data:
            whole = joined(data.train(ORDER, 9, 2, 8))
            tail = joined(data.train(ORDER, 9, 2, 8, start=1))
            assert_equal([part[8:] for part in whole], tail)
            halves = [data.train(ORDER, 9, 2, 8, shard=(i, 2)) for i in range(2)]
            turns = [batch for pair in zip(*halves, strict=True) for batch in pair]
            assert len(turns) == 6
            assert_equal(whole, joined(turns))
            assert_equal(whole, joined(data.train(ORDER[:24], 9, 2, 3)))
            picked = data.examples(ORDER[[20, 3, 3]], 9, 2)
            assert_equal([part[[20, 3, 3]] for part in whole], joined([picked]))
            assert list(data.train(ORDER, 9, 2, 8, start=3)) == []
            for seed, epoch in ((9, 3), (8, 2)):
                other = data.examples(ORDER[:8], seed, epoch)
                changed = (other.images != whole[0][:8]).any((1, 2, 3))
                assert changed.all()

    def test_workers_change_nothing(self, data_dir):
        with open_small(data_dir) as data, open_small(data_dir, workers=2) as two:
            whole = joined(data.train(ORDER, 9, 2, 4))
            assert_equal(whole, joined(two.train(ORDER, 9, 2, 4)))
            assert multiprocessing.active_children() == []
            resumed = two.train(ORDER, 9, 2, 4, start=2, shard=(1, 2))
            first = next(resumed)
            assert_equal([part[10:12] for part in whole], joined([first]))
            for child in multiprocessing.active_children():
                child.kill()
            with pytest.raises(UserError, match=r"has died: .*workers=0"):
                list(resumed)
        assert multiprocessing.active_children() == []

    def test_nothing_comes_after_closing(self, data_dir):
        with open_small(data_dir) as data:
            batches = data.train(ORDER, 9, 2, 8)
            next(batches)
        assert list(batches) == []

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ({"shard": (0, 3)}, "batch_size=8 cannot be divided among 3"),
            ({"shard": (2, 2)}, r"cannot be divided among 2 processes \(process 2\)"),
            ({"start": 4}, "start=4 must be from 0 to 3 steps"),
            ({"order": ORDER - 1}, r"positions from -1 to 24 in .* 26 images"),
            ({"order": ORDER + 1}, r"positions from 1 to 26 in .* 26 images"),
            ({"seed": -1}, r"stream seed -1 must be from 0"),
        ],
    )
    def test_mistakes(self, data_dir, call, message):
        call = {"order": ORDER, "seed": 0, "epoch": 0, "batch_size": 8, **call}
        with open_small(data_dir) as data, pytest.raises(UserError, match=message):
            data.train(**call)


class TestEvaluation:
    @pytest.mark.parametrize("count", [1, 2])
    def test_every_image_once(self, data_dir, count):
        found = examples(data_dir, "validation")
        with open_small(data_dir) as data:
            parts = [list(data.test(4, shard=(i, count))) for i in range(count)]
        shapes = {batch[0].shape for part in parts for batch in part}
        assert shapes == {(4 // count, SIZE, SIZE, 3)}
        turns = [batch for turn in zip(*parts, strict=True) for batch in turn]
        images, labels, valid = map(np.concatenate, zip(*turns, strict=True))
        assert len(valid) == 12
        readable = [example.name not in BROKEN["validation"] for example in found]
        assert valid.tolist() == readable + [False] * 3
        for i in np.flatnonzero(valid):
            expected = crop.evaluation(found[i].content, SIZE)
            np.testing.assert_array_equal(images[i], expected)
            assert labels[i] == found[i].label
        assert not images[~valid].any()


class TestBroken:
    def test_each_is_named_once(self, data_dir, capsys):
        with open_small(data_dir) as data:
            for epoch in range(2):
                list(data.train(ORDER, 0, epoch, 13))
            list(data.test(4))
        names = [example.name for example in examples(data_dir, "train")]
        out = capsys.readouterr().out
        assert len(out.splitlines()) == 3
        where = f"imagenet: train record {names.index('t15')} (t15)"
        assert f"{where} cannot be read: Truncated File Read; skipped\n" in out
        assert "(v4) cannot be read: image file is truncated" in out
        assert out.count("; skipped\n") == 3

    def test_stop(self, data_dir):
        message = r"train record \d+ \(t\d\d\) cannot be read: .*; broken='skip' cont"
        with open_small(data_dir, broken="stop") as data:
            with pytest.raises(UserError, match=message):
                list(data.train(ORDER, 0, 0, 13))
            with pytest.raises(UserError, match=message):
                data.examples(ORDER, 0, 0)
            with pytest.raises(UserError, match=r"validation record \d+ \(v4\)"):
                list(data.test(4))

    def test_the_next_readable_one_in_the_set_takes_the_place(self):
        good = [jpeg(np.roll(slope(50, 40), 9 * i, axis=1)) for i in range(6)]
        # Record 4 cannot be read; 5 and, after the end of the set, 1 are torn.
        stored = [Example(str(i), content, 10 + i) for i, content in enumerate(good)]
        stored[4] = OSError("no such sector\nat all")
        stored[5] = stored[1] = Example("torn", good[5][:300], 7)
        views = BatchMaker(
            FakeRecords(stored), np.array([1, 2, 3, 4, 5]), SIZE, crop.Crop()
        )
        images, labels, index, broken = views(np.array([3, 1]))
        assert index.tolist() == [3, 1]
        assert labels.tolist() == [12, 12]
        for image, i in zip(images, (3, 1), strict=True):
            uniform = crop.sample_uniform(0, 0, i)
            expected = crop.Crop().training(good[2], SIZE, uniform)
            np.testing.assert_array_equal(image, expected)
        assert broken[0] == ("part record 4", "no such sector")
        assert [record for record, _ in broken[1:]] == [
            "part record 5 (torn)",
            "part record 1 (torn)",
        ]

    def test_nothing_readable(self, own):
        prepared = tfds_files.find("imagenet", "imagenet2012", own[0])
        fake = FakeRecords([OSError("lost")] * 3, prepared)
        views = BatchMaker(fake, np.arange(3), SIZE, crop.Crop())
        with pytest.raises(
            UserError, match=r"is damaged \(no image readable: part rec"
        ):
            views(np.array([0]))

    def test_a_damaged_record_costs_no_other(self, own, capsys):
        data_dir, folder = own
        path = folder / "imagenet2012-train.array_record-00000-of-00001"
        found = examples(data_dir, "train")
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
        again = examples(data_dir, "train")
        (victim,) = [i for i, one in enumerate(again) if isinstance(one, Exception)]
        again[victim] = found[victim]
        assert again == found
        with open_small(data_dir) as data:
            batch = data.examples(np.array([victim]), 0, 0)
        assert batch.labels[0] == found[(victim + 1) % TRAIN].label
        out = capsys.readouterr().out
        assert f"train record {victim} cannot be read: Corrupted" in out


class FakeRecords:
    """Stands in for `Encoded`."""

    split = "part"

    def __init__(self, stored, prepared=None):
        self.stored, self.prepared = stored, prepared

    def read(self, numbers):
        return [self.stored[number] for number in numbers]

    def damaged(self, what):
        return tfds_files.damaged(self.prepared, what)


def test_a_program_that_leaves_early_ends_without_noise(data_dir, tmp_path):
    script = tmp_path / "leaves.py"
    script.write_text(
        "import sys\n"
        "import numpy as np\n"
        "from kdjax.data.streaming.opening import open_streamed\n"
        "slow = {'tensorflow_datasets', 'grain', 'jax'} & set(sys.modules)\n"
        "assert not slow, slow\n"
        "if __name__ == '__main__':\n"
        "    data = open_streamed('imagenet', sys.argv[1], image_size=64, workers=1)\n"
        "    assert len(list(data.test(4))) == 3\n"
        "    batches = data.train(np.arange(26), 0, 0, 2)\n"
        "    batch = next(batches)\n"
        "    assert 'tensorflow' not in sys.modules\n"
        "    print(batch.images.shape)\n"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(data_dir)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "(2, 64, 64, 3)"
