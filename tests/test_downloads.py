"""Archives of data sets: downloads, checksums and places."""

import contextlib
import functools
import hashlib
import http.server
import socket
import threading
import time

import archives
import pytest
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.datasets.svhn_cropped import svhn_cropped_dataset_builder
from tensorflow_datasets.image_classification import cifar

from kdjax.data import prepare, sources
from kdjax.data.builders import BUILDERS, tiny_imagenet
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


@contextlib.contextmanager
def serving(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_archives_are_downloaded(archive_dir, data_dir, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    archives.write_tiny_imagenet(archive_dir)
    with serving(archive_dir) as url:
        url = f"{url}/tiny-imagenet-200.zip"
        monkeypatch.setattr(tiny_imagenet, "_URL", url)
        prepare.prepare("tiny_imagenet", data_dir)
    assert len(sources.load("tiny_imagenet", str(data_dir)).train.labels) == 12


def test_a_download_with_another_checksum_is_refused(
    archive_dir, data_dir, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    archives.write_tiny_imagenet(archive_dir)
    with serving(archive_dir) as url:
        url = f"{url}/tiny-imagenet-200.zip"
        wrong = checksums.UrlInfo(
            size=1, checksum=hashlib.sha256().hexdigest(), filename=url[-21:]
        )
        monkeypatch.setattr(tiny_imagenet, "_URL", url)
        monkeypatch.setattr(BUILDERS["tiny_imagenet"], "url_infos", {url: wrong})
        with pytest.raises(UserError, match=r"is not the file that was published$"):
            prepare.prepare("tiny_imagenet", data_dir)


def test_the_official_checksums_are_known():
    for name in ("cifar10", "cifar100"):
        official = getattr(cifar, name.capitalize()).url_infos
        assert BUILDERS[name].url_infos.items() >= official.items()
    official = svhn_cropped_dataset_builder.Builder.url_infos
    ours = BUILDERS["svhn_cropped"].url_infos
    assert {url for url in official if ours.get(url) == official[url]} == {
        f"{svhn_cropped_dataset_builder.URL}{split}_32x32.mat"
        for split in ("train", "test")
    }


def test_being_offline_is_said_at_once(data_dir, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again below, so nobody answers
    monkeypatch.setattr(
        tiny_imagenet, "_URL", f"http://127.0.0.1:{port}/tiny-imagenet-200.zip"
    )
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^cannot download http.*--archive-dir DIR$"):
        prepare.prepare("tiny_imagenet", data_dir)
    assert time.monotonic() - start < 10  # TFDS by itself: more than 200 seconds


def test_an_archive_that_has_moved(archive_dir, data_dir, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(archive_dir) as url:
        monkeypatch.setattr(tiny_imagenet, "_URL", f"{url}/tiny-imagenet-200.zip")
        with pytest.raises(UserError, match=r"^cannot download .*\(DownloadError\)"):
            prepare.prepare("tiny_imagenet", data_dir)
