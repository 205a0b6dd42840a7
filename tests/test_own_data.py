"""One's own data: folders, arrays, and the kind of a data set."""

import os
import shutil

import numpy as np
import pytest
from own_images import CLASSES, splits, write
from own_opened import SIZE, opened, settings, streamed
from PIL import Image

from kdjax.data import own, sources
from kdjax.data.own import plan, resident
from kdjax.data.own.host_vary import HostVary
from kdjax.data.own.vary import Vary
from kdjax.data.streaming.crop import sample_uniform
from kdjax.data.subsets import stratified
from kdjax.runtime import console
from kdjax.runtime.errors import UserError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with train/ and test/."""
    return write(tmp_path_factory.mktemp("photos"), splits())


def in_order(root, split):
    """A split's files as they should be sorted, and their labels."""
    files = [
        (path, label)
        for label, name in enumerate(CLASSES)
        for path in sorted((root / split / name).iterdir())
    ]
    images = own.fit([path for path, _ in files], (SIZE, SIZE, 3))
    return images, np.array([label for _, label in files])


class TestFolder:
    def test_images_and_labels_in_the_files_order(self, photos):
        data = opened(photos)
        for split, part in (("train", data.train), ("test", data.test)):
            images, labels = in_order(photos, split)
            np.testing.assert_array_equal(part.images, images)
            np.testing.assert_array_equal(part.labels, labels)
            assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int32)
        assert (data.name, data.version, data.classes) == ("folder", "1", CLASSES)
        assert (data.num_classes, data.image_shape) == (3, (SIZE, SIZE, 3))

    def test_mean_and_deviation_are_those_of_the_training_images(self, photos):
        data = opened(photos)
        wide = data.train.images.astype(np.float64) / 255
        np.testing.assert_allclose(data.mean, wide.mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(data.std, wide.std((0, 1, 2)), rtol=1e-12)
        plain = opened(photos, normalise=False)
        assert (plain.mean, plain.std) == ((0.0,) * 3, (1.0,) * 3)

    @pytest.mark.parametrize("name", ["val", "validation", "Test"])
    def test_other_names_of_the_test_folder(self, photos, tmp_path, name):
        shutil.copytree(photos / "train", tmp_path / "train")
        shutil.copytree(photos / "test", tmp_path / name)
        data = opened(tmp_path)
        np.testing.assert_array_equal(data.test.images, opened(photos).test.images)
        assert data.content == opened(photos).content

    def test_of_two_test_folders_one_is_taken(self, photos, tmp_path, capsys):
        shutil.copytree(photos, tmp_path / "p")
        shutil.copytree(photos / "train", tmp_path / "p" / "val")
        assert opened(tmp_path / "p").content == opened(photos).content
        assert "test/ is the test set; val/ is not read" in capsys.readouterr().out

    def test_without_splits_a_fixed_part_is_kept_for_tests(
        self, photos, tmp_path, capsys
    ):
        # With a class that is called like a split.
        for name, new in zip(CLASSES, ("ant", "train", "zoo"), strict=True):
            shutil.copytree(photos / "train" / name, tmp_path / new)
        data = opened(tmp_path, test_share=0.25)
        labels = np.repeat(np.arange(3), 8)
        images = np.concatenate(
            [in_order(photos, "train")[0][labels == i] for i in range(3)]
        )
        held = np.zeros(24, bool)
        held[stratified(labels, 6)] = True
        np.testing.assert_array_equal(data.test.images, images[held])
        np.testing.assert_array_equal(data.train.images, images[~held])
        np.testing.assert_array_equal(np.bincount(data.test.labels), [2, 2, 2])
        assert data.classes == ("ant", "train", "zoo")
        out = capsys.readouterr().out
        assert "3 classes, 18 training and 6 test images; a fixed 25% of each" in out
        # Only train/ there: the same.
        alone = tmp_path / "alone" / "train"
        shutil.copytree(tmp_path / "ant", alone / "ant")
        shutil.copytree(tmp_path / "zoo", alone / "zoo")
        assert opened(alone.parent).test_size == 3

    def test_what_is_no_image_of_the_set_is_left_out(self, photos, tmp_path):
        shutil.copytree(photos, tmp_path / "p")
        root = tmp_path / "p"
        (root / "train" / "ant" / ".hidden.png").write_bytes(b"x")
        (root / "train" / "ant" / "notes.txt").write_bytes(b"x")
        (root / "train" / "__MACOSX").mkdir()
        (root / "train" / ".cache").mkdir()
        (root / "train" / "bee" / "inner").mkdir()
        os.rename(
            root / "train" / "bee" / "007.png", root / "train" / "bee" / "inner/1.PNG"
        )
        assert opened(root).content == opened(photos).content

    def test_all_grey_is_one_channel(self, tmp_path):
        write(tmp_path, splits(3, 1), channels=1)
        assert opened(tmp_path).image_shape == (SIZE, SIZE, 1)
        assert streamed(tmp_path).image_shape == (SIZE, SIZE, 1)
        Image.new("RGB", (20, 20)).save(tmp_path / "test" / "ant" / "000.png")
        assert opened(tmp_path).image_shape == (SIZE, SIZE, 3)

    def test_sizes_of_subsets(self, photos):
        images, labels = in_order(photos, "train")
        data = opened(photos, train_size=9, test_size=3)
        chosen = np.sort(stratified(labels, 9))
        np.testing.assert_array_equal(data.train.images, images[chosen])
        assert data.test_size == 3
        # Validation images come out of the training images, as of published sets.
        data = opened(photos, validation=6)
        held = np.zeros(24, bool)
        held[stratified(labels, 6)] = True
        np.testing.assert_array_equal(data.test.images, images[held])
        np.testing.assert_array_equal(data.train.images, images[~held])

    def test_the_size_by_default_is_the_median_of_the_shorter_sides(
        self, tmp_path, monkeypatch
    ):
        for i, side in enumerate((10, 12, 20)):
            for name in CLASSES:
                write(tmp_path / "train", {name: 1}, size=(side, side + 5))
                (tmp_path / "train" / name / "000.png").rename(
                    tmp_path / "train" / name / f"x{i}.png"
                )
        write(tmp_path / "test", dict.fromkeys(CLASSES, 1))
        found = own.describe(settings(tmp_path, image_size=None))
        assert (found.height, found.width) == (12, 17)
        assert found.image_shape == (12, 12, 3)
        assert opened(tmp_path, image_size=None).image_shape == (12, 12, 3)
        monkeypatch.setattr(plan, "_MOST_SIDE", 9)
        assert own.describe(settings(tmp_path, image_size=None)).image_shape[0] == 9


class TestBroken:
    @pytest.fixture
    def torn(self, photos, tmp_path):
        """No image at all, and one that ends early."""
        root = tmp_path / "torn"
        shutil.copytree(photos, root)
        (root / "train" / "ant" / "002.png").write_bytes(b"no image")
        path = root / "train" / "bee" / "005.png"
        path.write_bytes(path.read_bytes()[:-200])
        return root

    def test_is_named_and_skipped(self, photos, torn, capsys):
        for _ in range(2):  # also from the cache
            data = opened(torn)
            out = capsys.readouterr().out
            assert "skipped train/ant/002.png: cannot identify image file" in out
            assert "skipped train/bee/005.png: image file is truncated" in out
        images, labels = in_order(photos, "train")
        kept = np.delete(np.arange(24), [2, 13])
        np.testing.assert_array_equal(data.train.images, images[kept])
        np.testing.assert_array_equal(data.train.labels, labels[kept])

    def test_or_stops(self, torn):
        with pytest.raises(UserError, match=r"train/ant/002.png: .*broken=skip leaves"):
            opened(torn, broken="stop")
        shutil.copy(torn / "train/bee/000.png", torn / "train/ant/002.png")
        with pytest.raises(UserError, match=r"train/bee/005.png: image file is trunc"):
            opened(torn, broken="stop")

    def test_too_small_and_links_to_nothing(self, photos, tmp_path, capsys):
        root = tmp_path / "small"
        shutil.copytree(photos, root)
        Image.new("RGB", (40, 5)).save(root / "train" / "cow" / "small.png")
        (root / "train" / "cow" / "link.png").symlink_to("nowhere")
        assert opened(root).train_size == 24
        out = capsys.readouterr().out
        assert "train/cow/small.png: it is 40x5 pixels; the least is 8x8" in out
        assert "link.png" in out

    def test_many_are_counted(self, photos, tmp_path, capsys):
        root = tmp_path / "many"
        shutil.copytree(photos, root)
        for i in range(25):
            (root / "train" / "cow" / f"x{i}.jpg").write_bytes(b"")
        opened(root)
        out = capsys.readouterr().out
        assert out.count("skipped") == 20
        assert "and 5 more" in out


class TestStreamed:
    def test_equals_what_is_in_memory(self, photos):
        data = opened(photos)
        with streamed(photos) as other:
            batch = other.examples(np.arange(24), 3, 1)
            np.testing.assert_array_equal(batch.images, data.train.images)
            np.testing.assert_array_equal(batch.labels, data.train.labels)
            np.testing.assert_array_equal(other.labels, data.train.labels)
            images, labels, valid = map(
                np.concatenate, zip(*other.test(6), strict=True)
            )
            np.testing.assert_array_equal(images[:9], data.test.images)
            np.testing.assert_array_equal(labels[:9], data.test.labels)
            np.testing.assert_array_equal(valid, np.arange(12) < 9)
            for name in ("name", "version", "classes", "image_shape", "mean", "std"):
                assert getattr(other, name) == getattr(data, name), name
            assert (other.train_size, other.test_size) == (24, 9)
            # Images are varied otherwise: other networks come of it.
            assert other.content != data.content

    def test_subsets_and_validation(self, photos):
        options = {"validation": 6, "train_size": 9, "test_size": 3}
        data = opened(photos, **options)
        with streamed(photos, **options) as other:
            batch = other.examples(np.arange(9), 0, 0)
            np.testing.assert_array_equal(batch.images, data.train.images)
            ((images, _, _),) = other.test(3)
            np.testing.assert_array_equal(images, data.test.images)

    def test_workers_vary_images_by_seed_epoch_and_position(self, photos):
        vary = Vary(area=(0.2, 1.0), flip=True, jitter=(0.2, 0.2, 0.2)).on_host()
        order = np.random.default_rng(0).permutation(24)
        with streamed(photos, vary=vary, workers=1) as data:
            batches = list(data.train(order, 5, 1, 12))
            images = np.concatenate([batch.images for batch in batches])
            for image, i in zip(images, order, strict=True):
                name = CLASSES[i // 8]
                content = (photos / "train" / name / f"{i % 8:03d}.png").read_bytes()
                uniform = sample_uniform(5, 1, i, HostVary.DRAWS)
                expected = data.crop.training(content, SIZE, uniform)
                np.testing.assert_array_equal(image, expected)

    def test_the_mean_is_of_a_fixed_part(self, photos, monkeypatch):
        monkeypatch.setattr("kdjax.data.own.sample.MOST", 9)
        images, labels = in_order(photos, "train")
        part = images[stratified(labels, 9)] / 255
        with streamed(photos) as data:
            np.testing.assert_allclose(data.mean, part.mean((0, 1, 2)), rtol=1e-12)
            np.testing.assert_allclose(data.std, part.std((0, 1, 2)), rtol=1e-12)
        with streamed(photos, normalise=False) as data:
            assert (data.mean, data.std) == ((0.0,) * 3, (1.0,) * 3)

    def test_the_share_of_the_memory_decides(self, photos, monkeypatch, capsys):
        bytes_ = (24 + 9) * SIZE * SIZE * 3
        monkeypatch.setattr(plan, "memory", lambda: 4 * bytes_)
        assert isinstance(opened(photos), sources.Dataset)
        assert "kept on the devices" in capsys.readouterr().out
        assert sources.fits_memory(settings(photos))
        monkeypatch.setattr(plan, "memory", lambda: 4 * bytes_ - 4)
        assert not isinstance(opened(photos), sources.Dataset)
        assert "streamed" in capsys.readouterr().out
        assert not sources.fits_memory(settings(photos))


class TestArrays:
    def test_registered_arrays(self, rng):
        images = rng.integers(0, 256, (50, 9, 11), dtype=np.uint8)
        names = np.array(["b", "a", "c", "a", "b"] * 10)
        path = own.register_arrays(images, names)
        assert path == own.register_arrays(images, names)
        assert path.startswith("arrays-")
        assert path != own.register_arrays(images, names, images, names)
        data = own.open_own({"name": "arrays", "path": path})
        labels = np.array([1, 0, 2, 0, 1] * 10)
        held = np.zeros(50, bool)
        held[stratified(labels, 10)] = True
        np.testing.assert_array_equal(data.train.images[..., 0], images[~held])
        np.testing.assert_array_equal(data.test.labels, labels[held])
        assert (data.classes, data.image_shape) == (("a", "b", "c"), (9, 11, 1))
        mean = images[~held].mean() / 255
        np.testing.assert_allclose(data.mean, [mean], rtol=1e-12)

    def test_with_test_images_and_another_size(self, rng):
        images = rng.integers(0, 256, (20, 9, 9, 3), dtype=np.uint8)
        labels = np.arange(20) % 2
        path = own.register_arrays(images, labels, images[:4], labels[:4])
        data = own.open_own({"name": "arrays", "path": path, "image_size": 12})
        np.testing.assert_array_equal(data.train.images, own.fit(images, (12, 12, 3)))
        np.testing.assert_array_equal(data.test.labels, labels[:4])
        assert data.classes == ("0", "1")
        found = own.describe({"name": "arrays", "path": path, "image_size": 12})
        assert found == own.Description(
            "arrays", 2, ("0", "1"), 20, 4, 9, 9, 3, (12, 12, 3), True
        )

    def test_npz_is_the_same(self, rng, tmp_path):
        images = rng.integers(0, 256, (30, 8, 8), dtype=np.uint8)
        labels = np.arange(30) % 3
        np.savez(tmp_path / "x.npz", images=images, labels=labels, classes=[*"xyz"])
        data = own.open_own({"name": "npz", "path": str(tmp_path / "x.npz")})
        path = own.register_arrays(images, labels)
        other = own.open_own({"name": "arrays", "path": path})
        assert data.content == other.content
        assert data.classes == ("x", "y", "z")
        assert data.test_size == 6

    def test_the_mean_of_many_pixels_is_exact(self):
        """A float32 sum of so many would stop at 2^24."""
        counts = np.zeros((1, 256), np.int64)
        counts[0, [3, 200]] = 3 * 10**12, 10**12
        (mean,), (std,) = resident.statistics(counts)
        assert mean == pytest.approx((3 * 3 + 200) / 4 / 255, rel=1e-15)
        assert std == pytest.approx(197 * (3 / 16) ** 0.5 / 255, rel=1e-15)
        # A constant channel can be divided by its deviation.
        constant = np.zeros((1, 256), np.int64)
        constant[0, 7] = 5
        assert resident.statistics(constant) == ((7 / 255,), (1.0,))

    def test_counts_of_parts_add_up(self, rng, monkeypatch):
        images = rng.integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)
        monkeypatch.setattr(resident, "_CHUNK", 11)
        counts = resident.count_values(images)
        for channel in range(3):
            expected = np.bincount(images[..., channel].ravel(), minlength=256)
            np.testing.assert_array_equal(counts[channel], expected)


def test_the_kind_is_found(tmp_path, photos):
    assert own.find_kind(str(photos)) == "folder"
    (tmp_path / "x.NPZ").touch()
    assert own.find_kind(str(tmp_path / "x.NPZ")) == "npz"
    (tmp_path / "x.zip").touch()
    with pytest.raises(UserError, match=r"is a file of \.zip; choices: a folder of"):
        own.find_kind(str(tmp_path / "x.zip"))
    with pytest.raises(UserError, match=r"holds files of .*\.zip \(1\).*; choices"):
        own.find_kind(str(tmp_path))
    with pytest.raises(UserError, match=r"no such folder or file: .*nowhere"):
        own.find_kind(str(tmp_path / "nowhere"))


def test_a_bar_on_a_terminal_and_a_line_elsewhere(monkeypatch, capsys):
    import rich.console

    with console.progress("reading [these]", 1200) as advance:
        advance(700)
    assert capsys.readouterr().out == "reading [these] (1,200)\n"
    terminal = rich.console.Console(force_terminal=True, width=80)
    monkeypatch.setattr(console, "console", terminal)
    with console.progress("reading [these]", 1200) as advance:
        advance(700)
    out = capsys.readouterr().out
    assert "reading [these]" in out
    assert "700/1200" in out
