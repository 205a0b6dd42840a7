"""The cache of decoded data sets: what it keeps and when it is read."""

import json
import os
import shutil

import archives
import numpy as np
import pytest
from record_files import RECORD, assert_equal, flip, forbid_decoding

from kdjax.data import prepare, sources


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


class TestCache:
    def test_the_second_load_decodes_nothing(self, tiny, cache, monkeypatch):
        first = sources.load("cifar10", str(tiny))
        assert len(list(cache.iterdir())) == 2
        forbid_decoding(monkeypatch)
        assert_equal(sources.load("cifar10", str(tiny)), first)

    def test_without_own_folder_it_lies_in_the_users(self, tiny, tmp_path, monkeypatch):
        monkeypatch.delenv("KDJAX_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        sources.load("cifar10", str(tiny))
        assert len(list((tmp_path / "xdg" / "kdjax").iterdir())) == 2
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        sources.load("cifar10", str(tiny))
        assert len(list((tmp_path / "home" / ".cache" / "kdjax").iterdir())) == 2

    @pytest.mark.parametrize(
        "change",
        [
            lambda folder: os.utime(folder / RECORD, (1, 1)),
            lambda folder: (folder / f"{RECORD}-more").write_text("longer"),
            lambda folder: edit_description(folder),
            lambda folder: folder.parents[1].rename(folder.parents[2] / "moved"),
        ],
    )
    def test_changed_files_are_decoded_anew(self, change, own, monkeypatch):
        data_dir, folder = own
        sources.load("cifar10", str(data_dir))
        change(folder)
        moved = data_dir.parent / "moved"
        forbid_decoding(monkeypatch)
        with pytest.raises(AssertionError, match="decoded again"):
            sources.load("cifar10", str(moved if moved.exists() else data_dir))

    @pytest.mark.parametrize("spoil", [lambda f: os.truncate(f, 1000), flip])
    def test_a_spoilt_file_is_replaced(self, spoil, tiny, cache, monkeypatch):
        first = sources.load("cifar10", str(tiny))
        for file in cache.iterdir():
            spoil(file)
        assert_equal(sources.load("cifar10", str(tiny)), first)
        forbid_decoding(monkeypatch)
        assert_equal(sources.load("cifar10", str(tiny)), first)

    def test_a_folder_that_cannot_be_written_is_no_error(self, tiny, cache):
        cache.write_text("a file, not a folder")
        assert len(sources.load("cifar10", str(tiny)).train.labels) == 60

    def test_a_failed_write_leaves_nothing(self, tiny, cache, monkeypatch):
        def full(file, **_):
            file.write(b"half")
            raise OSError("no space left on device")

        monkeypatch.setattr(np, "savez", full)
        assert len(sources.load("cifar10", str(tiny)).train.labels) == 60
        assert list(cache.iterdir()) == []


def edit_description(folder):
    description = folder / "dataset_info.json"
    info = json.loads(description.read_text())
    description.write_text(json.dumps({**info, "citation": "another"}))
