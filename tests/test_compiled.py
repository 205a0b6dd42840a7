"""What one run of the tests keeps of compiled programs for the next."""

import os
import time

import compiled
import pytest
from jax._src.compilation_cache import compress_executable


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(compiled, "WORKERS", tmp_path / "workers")
    return tmp_path / "kept" / "some"


def test_whole_programs_alone_are_kept_and_found(kept, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    whole = compress_executable(bytes(range(256)) * 99)
    (one / "a-cache").write_bytes(whole)
    (one / "b-cache").write_bytes(whole[:-9])  # as a killed process leaves it
    compiled.give(one, "some")
    assert os.listdir(kept) == ["a-cache"]
    compiled.take(tmp_path / "other", "some")
    assert (tmp_path / "other" / "a-cache").read_bytes() == whole


def test_copies_where_links_cannot_be(kept, tmp_path, monkeypatch):
    def refused(*args):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refused)
    test_whole_programs_alone_are_kept_and_found(kept, tmp_path)


def test_what_is_old_and_too_much_goes(kept, monkeypatch):
    monkeypatch.setattr(compiled, "LIMIT", 25)
    kept.mkdir(parents=True)
    for age, name in enumerate("abc"):
        (kept / name).write_bytes(bytes(10))
        os.utime(kept / name, (time.time() - age,) * 2)
    old, new = (compiled.WORKERS / name for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    compiled.prune()
    assert sorted(os.listdir(kept)) == ["a", "b"]
    assert not old.exists()
    assert new.exists()


def test_no_folder_where_none_can_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(compiled, "WORKERS", tmp_path / "file" / "workers")
    assert compiled.own_folder() is None
