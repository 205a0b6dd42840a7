"""Mistakes in one's own data: one line that names what is wrong."""

import numpy as np
import pytest
from own_images import splits, write

from kdjax.data import own
from kdjax.experiment.config import parse_config
from kdjax.runtime.errors import UserError


def opened(path, name="folder", **options):
    return own.open_own({"name": name, "path": str(path), "image_size": 16, **options})


def fails(path, message, **options):
    with pytest.raises(UserError, match=message) as error:
        opened(path, **options)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):
        own.describe({"name": "folder", "path": str(path), **options})


class TestFolder:
    def test_nothing_there(self, tmp_path):
        fails(tmp_path / "nowhere", r"no such folder: .*nowhere")
        fails(tmp_path, "no class folders in it, but nothing")
        for i in range(3):
            (tmp_path / f"{i}.jpg").touch()
        fails(tmp_path, r"no class folders in it, but files of \.jpg \(3\)")

    def test_an_empty_class(self, tmp_path):
        write(tmp_path, {"ant": 2, "bee": 0, "cow": 2})
        (tmp_path / "bee" / "x.txt").touch()
        fails(tmp_path, r"the class 'bee' has no images: files of \.txt \(1\)")

    def test_a_class_of_broken_images_alone(self, tmp_path):
        write(tmp_path, {"ant": 4, "bee": 4})
        for path in (tmp_path / "bee").iterdir():
            path.write_bytes(b"x")
        fails(tmp_path, "the class 'bee' has no images")
        for path in (tmp_path / "ant").iterdir():
            path.write_bytes(b"x")
        fails(tmp_path, r"no image can be read; the first is ant/000.png: cannot")

    def test_a_class_whose_images_all_end_early(self, tmp_path):
        write(tmp_path, splits(2, 2))
        for path in (tmp_path / "train" / "bee").iterdir():
            path.write_bytes(path.read_bytes()[:-200])
        message = "the class 'bee' is in test but not in training"
        with pytest.raises(UserError, match=message):  # known when it is decoded
            opened(tmp_path)

    def test_no_test_image_that_can_be_read(self, tmp_path):
        write(tmp_path, splits(2, 1))
        for path in tmp_path.glob("test/*/*"):
            path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(UserError, match="none of the test images can be read"):
            opened(tmp_path, train_size=4)

    def test_one_class(self, tmp_path):
        write(tmp_path, {"ant": 2})
        fails(tmp_path, r"only one class \('ant'\)")

    def test_two_classes_that_differ_in_case(self, tmp_path):
        write(tmp_path, {"ant": 1, "Bee": 1, "bee": 1})
        fails(tmp_path, "the classes 'Bee' and 'bee' differ in case only")

    def test_a_class_in_test_alone(self, tmp_path):
        write(tmp_path, {"train": {"ant": 2, "bee": 2}, "test": {"ant": 1, "cow": 1}})
        fails(tmp_path, "the class 'cow' is in test but not in training")

    def test_test_alone(self, tmp_path):
        write(tmp_path, {"test": {"ant": 1, "bee": 1}})
        fails(tmp_path, "has test/ with class folders, but no train/")

    def test_too_few_to_keep_some_for_tests(self, tmp_path):
        write(tmp_path, {"ant": 9, "bee": 1})
        message = "class 'ant' has too few images to keep 90% of them for tests: 9"
        fails(tmp_path, message, test_share=0.9)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"train_size": 25},
                "train_size of folder .* must be from 1 to 24, not 25",
            ),
            ({"test_size": 0}, "test_size of folder .* must be from 1 to 9, not 0"),
            ({"validation": 24}, "validation of folder .* must be from 1 to 23"),
            ({"validation": -1}, r"data\.validation=-1 must be at least 0"),
            ({"image_size": 4}, r"data\.image_size=4 must be at least 8"),
            ({"image_size": 16.5}, r"data\.image_size=16\.5 is not of type int"),
            ({"workers": -1}, r"data\.workers=-1 must be at least 0"),
            ({"test_share": 1.0}, r"data\.test_share=1\.0 must lie between 0 and 1"),
            ({"memory_share": 2.0}, r"data\.memory_share=2\.0 must be from 0 to 1"),
            ({"memory_share": "all"}, r"data\.memory_share='all' is not of type float"),
            ({"broken": "hide"}, "'hide'; choices: skip, stop"),
            ({"share": 1}, "'share'; choices: name, path, "),
        ],
    )
    def test_options(self, tmp_path, options, message):
        write(tmp_path, splits())
        fails(tmp_path, message, **options)


GOOD = np.zeros((6, 9, 9), np.uint8)
LABELS = np.array([0, 1] * 3)


class TestArrays:
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, 1, 0, 1, 0], "6 images, but 5 labels"),
            ([0, -1, 0, 1, 0, 1], "label -1 is negative"),
            ([0, 2, 0, 2, 0, 2], "the class '1' has no images"),
            ([1, 2] * 3, "the class '0' has no images"),
            ([0, 1, 0, 1, 0, 10**6], "label 1000000 is out of range for 6 images"),
            ([0] * 6, r"only one class \('0'\)"),
            (["a", "A"] * 3, "the classes 'A' and 'a' differ in case only"),
            ([0.0, np.nan] * 3, "dtype float64, NaN at 1; give integers from 0"),
            ([0.0, 1.0] * 3, "dtype float64; give integers from 0"),
            ([True, False] * 3, "dtype bool; give integers from 0"),
            (3, r"shape \(\); give one integer or name per image"),
            ([[0], [1, 2]] * 3, "labels must be one integer or name per image"),
            (np.eye(6), r"shape \(6, 6\); give one integer or name per image"),
        ],
    )
    def test_labels(self, labels, message):
        with pytest.raises(UserError, match=message):
            own.register_arrays(GOOD, labels)

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (GOOD.astype(np.float32), "arrays: images are float32 pixels, from 0 to 0"),
            (np.full((6, 9, 9), np.nan), "image 0 holds nan"),
            (GOOD.astype(int), "dtype int64; give uint8"),
            (GOOD[0], r"shape \(9, 9\)"),
            (GOOD[:, :5], "9x5 pixels; the least is 8x8"),
            (GOOD[:0], "0 images, but 6 labels"),
            ([GOOD[0], GOOD[0, :8]], "images are of several shapes; give one uint8"),
        ],
    )
    def test_images(self, images, message):
        with pytest.raises(UserError, match=message):
            own.register_arrays(images, LABELS)

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (GOOD, None, "test_images and test_labels belong together"),
            (None, LABELS, "test_images and test_labels belong together"),
            (GOOD[:, :8], LABELS, r"images are \(9, 9, 1\), test_images \(8, 9, 1\)"),
            (GOOD, LABELS + 1, "the class '2' is in test but not in training"),
            (GOOD, LABELS - 1, "label -1 is negative"),
            (GOOD, ["a", "b"] * 3, "labels and test_labels are not both names"),
            (GOOD[:0], LABELS[:0], "arrays has no test images"),
        ],
    )
    def test_test_images(self, images, labels, message):
        with pytest.raises(UserError, match=message):
            own.register_arrays(GOOD, LABELS, images, labels)

    def test_no_images_at_all(self):
        with pytest.raises(UserError, match="no class"):
            own.register_arrays(GOOD[:0], LABELS[:0])

    def test_another_process(self):
        with pytest.raises(UserError, match=r"'arrays-0'.* not known to this process"):
            opened("arrays-0", "arrays")

    def test_npz(self, tmp_path):
        path = tmp_path / "x.npz"
        with pytest.raises(UserError, match=r"no such file: .*x\.npz"):
            opened(path, "npz")
        path.write_bytes(b"no archive")
        with pytest.raises(UserError, match=r"npz .*x\.npz cannot be read"):
            opened(path, "npz")
        np.savez(path, x=GOOD, labels=LABELS)
        with pytest.raises(UserError, match="there is no 'images', but x, labels"):
            opened(path, "npz")
        np.savez(path, images=np.array([object()]), labels=LABELS)
        with pytest.raises(UserError, match=r"cannot be read: .*allow_pickle"):
            opened(path, "npz")
        np.savez(path, images=GOOD, labels=LABELS, classes=["x", "y", "z"])
        with pytest.raises(UserError, match=r"x\.npz: the class 'z' has no images"):
            opened(path, "npz")
        np.savez(path, images=GOOD, labels=LABELS, classes=["x"])
        with pytest.raises(UserError, match="only one class"):
            opened(path, "npz")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "folder"}, r"data\.path is missing: the path of the 'folder'"),
        ({"name": "mnist", "path": "x"}, "'mnist'|unknown data key 'path'"),
        ({"name": "mnist"}, "'mnist'; choices: digits, .*, imagenet, folder, npz"),
        ({"path": "x"}, "unknown data key 'path'|'name' is missing"),
        ({"name": "folder", "path": "x", "size": 3}, "option of data 'size'"),
        ({"name": "folder", "path": "x", "augment": {"area": [2, 3]}}, "area"),
        ({"name": "folder", "path": "x", "augment": {"mixup": 1}}, "'mixup'; choices"),
        ({"name": "folder", "path": 3}, r"data\.path=3 is not of type str"),
    ],
)
def test_configs(data, message):
    config = {"data": data, "recipe": {}, "seeds": 1, "stages": {}}
    with pytest.raises(UserError, match=message):
        parse_config(config)
