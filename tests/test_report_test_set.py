"""The test images that a report looks at: of data in memory, and read from disk."""

import numpy as np
import own_images
import pytest
from pictures import BROKEN, SIZE, TEST, files

from benchmarks import photos
from configs import dgkd, own
from kdjax.data.streaming.opening import open_streamed
from kdjax.report import test_set
from kdjax.report.runs import Run
from kdjax.runtime.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    photos.write(folder, {split: files(split) for split in BROKEN})
    return folder


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """A run whose images are read from disk; nothing of it is trained."""
    arg = "imagenet,path=plain3/plain2,epochs=1,batch_size=8,method=kd"
    config = dgkd.get_config(arg).to_dict()
    config["data"] |= {"dir": str(data_dir), "image_size": SIZE, "workers": 0}
    return Run("run", tmp_path_factory.mktemp("run"), {}, {"config": config})


def evaluated(data_dir, index):
    with open_streamed(
        "imagenet", str(data_dir), image_size=SIZE, workers=0
    ) as streamed:
        return streamed.evaluated("test", np.array(index))


def test_images_that_cannot_be_read_are_left_out(run, data_dir):
    found = test_set.load(run)
    images, labels, valid = evaluated(data_dir, range(TEST))
    assert valid.sum() == TEST - 1
    np.testing.assert_array_equal(found.images, images[valid])
    np.testing.assert_array_equal(found.labels, labels[valid])
    assert (found.total, found.whole) == (TEST, False)
    assert found.image_shape == (SIZE, SIZE, 3)
    assert len(found.classes) == 1000


def test_many_images_are_a_sample_from_end_to_end(run, data_dir, monkeypatch):
    monkeypatch.setattr(test_set, "MOST_STREAMED", 3)
    found = test_set.load(run)
    images, labels, _ = evaluated(data_dir, [0, 4, 8])
    valid = [0, 2]  # the one in the middle is broken
    np.testing.assert_array_equal(found.images, images[valid])
    np.testing.assert_array_equal(found.labels, labels[valid])


def test_images_of_ones_own_may_have_moved(tmp_path):
    photos_ = own_images.write(tmp_path / "photos", own_images.splits(), size=(8, 8))
    config = own.get_config(f"data={photos_},student=plain2,method=supervised,epochs=1")
    run = Run("run", tmp_path, {}, {"config": config.to_dict()})
    before = test_set.load(run)
    moved = photos_.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="no such folder"):
        test_set.load(run)
    found = test_set.load(run, moved)
    np.testing.assert_array_equal(found.images, before.images)
    assert found.content == before.content
    assert found.whole


def test_no_readable_image_is_a_mistake(run, monkeypatch):
    nothing = np.zeros((2, SIZE, SIZE, 3), np.uint8), np.zeros(2, int), np.zeros(2)
    monkeypatch.setattr(
        "kdjax.data.streaming.dataset.Streamed.evaluated",
        lambda *_: (nothing[0], nothing[1], nothing[2].astype(bool)),
    )
    with pytest.raises(UserError, match="no test image of imagenet can be read"):
        test_set.load(run)
