"""One's own data: what the cache keeps, and what a description decodes."""

import os
import shutil

import numpy as np
import pytest
from own_images import splits, write
from own_opened import SIZE, opened, settings
from PIL import Image

from kdjax.data import own


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with train/ and test/."""
    return write(tmp_path_factory.mktemp("photos"), splits())


@pytest.fixture
def _new_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_CACHE", str(tmp_path / "new-cache"))


@pytest.mark.usefixtures("_new_cache")
@pytest.mark.parametrize("form", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_a_description_decodes_no_pixel(tmp_path, monkeypatch, form):
    write(tmp_path, splits(2, 1), form)

    def fail(*args):
        raise AssertionError("pixels were decoded")

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", fail)
        patch.setattr("PIL.ImageFile.ImageFile.load_prepare", fail)
        found = own.describe(settings(tmp_path))
    assert (found.num_classes, found.train_size, found.test_size) == (3, 6, 3)
    assert opened(tmp_path).image_shape == found.image_shape


@pytest.mark.usefixtures("_new_cache")
class TestCache:
    def test_a_second_start_opens_no_file(self, photos, monkeypatch):
        first, described = opened(photos), own.describe(settings(photos))

        def fail(*args, **kwargs):
            raise AssertionError("a file was opened again")

        monkeypatch.setattr(Image, "open", fail)
        monkeypatch.setattr("kdjax.data.own.folder.Files.read", fail)
        again = opened(photos)
        np.testing.assert_array_equal(again.train.images, first.train.images)
        np.testing.assert_array_equal(again.test.labels, first.test.labels)
        assert (again.mean, again.std) == (first.mean, first.std)
        assert again.content == first.content
        assert own.describe(settings(photos)) == described

    def test_a_changed_file_is_read_again(self, photos, tmp_path):
        root = tmp_path / "p"
        shutil.copytree(photos, root)
        path = root / "train" / "ant" / "!.bmp"
        Image.new("RGB", (20, 20), "white").save(path)
        first = opened(root)
        status = path.stat()
        Image.new("RGB", (20, 20)).save(path)
        assert path.stat().st_size == status.st_size
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        again = opened(root)
        assert (again.train.images[0] == 0).all()
        assert again.content != first.content

    def test_content_is_what_is_read_and_not_where(self, photos, tmp_path):
        first = opened(photos).content
        shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
        assert opened(tmp_path / "copy").content == first
        assert opened(photos, image_size=SIZE + 1).content != first
        assert opened(photos, train_size=23).content != first
        # An image under another label.
        root = tmp_path / "copy" / "train"
        (root / "ant" / "007.png").rename(root / "bee" / "!.png")
        assert opened(tmp_path / "copy").content != first

    def test_a_damaged_cache_is_made_anew(self, photos, tmp_path):
        first = opened(photos)
        for path in (tmp_path / "new-cache").iterdir():
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        again = opened(photos)
        np.testing.assert_array_equal(again.train.images, first.train.images)
        assert again.content == first.content

    def test_without_a_cache(self, photos, monkeypatch):
        monkeypatch.setenv("KDJAX_CACHE", os.devnull)
        assert opened(photos).train_size == 24
