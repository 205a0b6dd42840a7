"""Pretrained weights of timm and torchvision: downloaded, kept, or not reached."""

import importlib.util
import socket
import sys
import threading
import time
import types
import urllib.parse

import numpy as np
import pytest

import kdjax
from kdjax import models
from kdjax.runtime import private_names
from kdjax.runtime.errors import UserError

pytest.importorskip("torch", reason="torch, of the torch extra, is not installed")

import torch

from kdjax.models.foreign import downloads, weights, zoo

pytestmark = pytest.mark.skipif(
    None in map(importlib.util.find_spec, ("torchax", "timm", "torchvision")),
    reason="torchax, timm or torchvision is not installed",
)
CLASSES = 3
DEIT = "timm:deit_tiny_patch16_224(img_size=16, patch_size=8, depth=1)"
HUBS = {"timm:resnet18": "huggingface.co", "torchvision:resnet18": "download.pytorch"}


@pytest.fixture
def nobody(monkeypatch):
    """No host answers, and no name is ever found."""
    for name in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    end = threading.Event()

    def connect(address, timeout):
        end.wait(60)
        raise OSError("nobody")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(downloads, "_PATIENCE", 0.2)
    yield
    end.set()


@pytest.mark.slow
def test_a_teacher_of_timm_is_downloaded(monkeypatch, tmp_path):
    timm, asked = zoo.load("timm"), []
    create = timm.create_model

    def create_model(name, pretrained=False, **options):
        if not pretrained:
            return create(name, **options)
        asked.append((name, options))
        torch.manual_seed(5)
        return create(name, num_classes=CLASSES, **options)  # what a hub would have

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(downloads, "_is_reached", lambda host, port: True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    data = images, np.arange(12) % CLASSES
    result = kdjax.distill(
        teacher=DEIT,
        student="torch_own:Net(width=2)",
        data=data,
        test=data,
        epochs=1,
        batch_size=8,
        workdir=tmp_path,
    )
    options = {"img_size": 16, "patch_size": 8, "depth": 1}
    assert asked[0] == ("deit_tiny_patch16_224", options)
    assert result.summary["stages"]["teacher"]["given"] == ["pretrained"]
    torch.manual_seed(5)
    made = create("deit_tiny_patch16_224", num_classes=CLASSES, **options)
    for key, value in result.network("teacher").torch().items():
        assert torch.equal(made.state_dict()[key], value)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("name", HUBS)
def test_a_hub_that_does_not_answer_is_told_within_ten_seconds(
    name, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = models.create(name, CLASSES)
    begin = time.monotonic()
    with pytest.raises(UserError) as caught:
        weights.load("pretrained", network)
    assert time.monotonic() - begin < 10
    line = str(caught.value)
    assert f"the weights of {name} cannot be downloaded ({HUBS[name]}" in line
    assert "is not reached): teacher_weights= names a file" in line
    assert len(line) <= 300


@pytest.mark.usefixtures("nobody")
def test_weights_that_were_downloaded_before_need_no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = models.create("torchvision:squeezenet1_1", 1000)
    url = zoo.weights_url("squeezenet1_1")
    file = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.manual_seed(7)
    made = network.make()
    torch.save(made.state_dict(), file)
    found = weights.load("pretrained", network)["params"]
    key = "features.0.weight"
    np.testing.assert_array_equal(found[key], made.state_dict()[key].numpy())


def test_the_hub_or_its_proxy_is_asked(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert downloads._is_reached("127.0.0.1", port)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        assert downloads._is_reached("nowhere.invalid", 443)
    assert not downloads._is_reached("127.0.0.1", port)  # it is closed


def test_a_mirror_is_asked_in_the_hubs_place(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080/hf")
    address = downloads._address(downloads._hub("timm", "resnet18"))
    assert address == ("mirror.example", 8080)
    host = urllib.parse.urlsplit(zoo.weights_url("resnet18")).hostname
    assert downloads._address(downloads._hub("torchvision", "resnet18")) == (host, 443)


def test_hugging_faces_library_is_offline_for_a_while(monkeypatch):
    constants = types.ModuleType("huggingface_hub.constants")
    constants.HF_HUB_OFFLINE = False
    library = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    with private_names.hugging_face_offline(True):
        assert constants.HF_HUB_OFFLINE
    with private_names.hugging_face_offline(False):
        assert not constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_network_of_ones_own_has_nothing_to_download():
    network = models.create("torch_own:Net", CLASSES)
    with pytest.raises(UserError, match="no weights to download: teacher_weights="):
        downloads.pretrained(network)
