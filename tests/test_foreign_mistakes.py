"""Mistakes with networks of PyTorch end in one line, before any training."""

import importlib.util
import sys

import numpy as np
import own_images
import pytest

import kdjax
from kdjax import main as command
from kdjax.models.foreign import zoo
from kdjax.runtime.errors import UserError
from kdjax.runtime.signals import Interrupt

pytest.importorskip("torch", reason="torch, of the torch extra, is not installed")

import torch
import torch_own

pytestmark = pytest.mark.skipif(
    None in map(importlib.util.find_spec, ("torchax", "timm", "torchvision")),
    reason="torchax, timm or torchvision is not installed",
)
CLASSES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of three classes, and files of weights."""
    folder = tmp_path_factory.mktemp("own")
    own_images.write(folder / "photos", own_images.splits(), size=(8, 8))
    torch.save(torch_own.Net(2, CLASSES).state_dict(), folder / "net.pth")
    torch.save(torch_own.Net(2, CLASSES), folder / "whole.pth")
    (folder / "wants_torch.py").write_text("import torch\n")
    return folder


@pytest.fixture
def line(folder, tmp_path, monkeypatch, request, capsys):
    """Runs the command and returns its one line; a run's is that of a dry run."""
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr(Interrupt, "install", lambda self: None)
    monkeypatch.setattr("kdjax.runtime.backend.use_compilation_cache", lambda: None)

    def no_training(*args, **kwargs):
        raise AssertionError("bad input was accepted: training would start")

    monkeypatch.setattr("kdjax.experiment.run.Training", no_training)

    def run(arg):
        arg = arg.replace("FOLDER", str(folder))
        config = f"configs/own.py:data={folder}/photos,epochs=1,batch_size=8,{arg}"
        told = []
        for more in ([], ["--dry-run"]):
            flags = f"--workdir={tmp_path / 'work'}", f"--config={config}", *more
            assert command.main(["kdjax", *flags]) == 2
            err = capsys.readouterr().err
            assert err.startswith("kdjax: ")
            assert err.count("\n") == 1
            assert len(err) <= 300
            told.append(err)
        assert told[0] == told[1]
        return told[0]

    return run


WEIGHTS = "teacher_weights=FOLDER/net.pth,student=resnet-8"
ALONE = "method=supervised"
MISTAKES = {
    f"student=timm:resnt18,{ALONE}": ["timm 'resnt18'", "resnet18", "list_models()"],
    f"student=torchvision:rsnet18,{ALONE}": ["torchvision 'rsnet18'", "resnet18"],
    f"teacher=torch_own:Padded,{WEIGHTS}": [
        "net.pth is of another network than torch_own:Padded: stem.weight is missing"
    ],
    f"teacher=torch_own:Net(width=3),{WEIGHTS}": ["[2, 3, 3, 3], not [3, 3, 3, 3]"],
    f"teacher=torch_own:Nat,{WEIGHTS}": ["'Nat'; choices: Net"],
    "teacher=torch_own:Net,teacher_weights=FOLDER/whole.pth,student=resnet-8": [
        "whole.pth holds more than tensors",
        "state_dict()",
    ],
    "teacher=torch_own:Net,teacher_weights=FOLDER/no.pth,student=resnet-8": [
        "no.pth not found"
    ],
    f"student=torch_own:Asks,{ALONE}": ["Asks.forward wants 'mask' besides images"],
    f"student=torch_own:Bad('dict'),{ALONE}": ["a dict of 'logits', 'aux'"],
    f"student=torch_own:Bad('tuple'),{ALONE}": ["a tuple of [2, 3], [2, 3]"],
    f"student=torch_own:Bad('branch'),{ALONE}": ["branches on values", "torch.where"],
    f"student=torch_own:Bad('cuda'),{ALONE}": ["moves tensors to CUDA"],
    f"student=torch_own:Bad('operation'),{ALONE}": ["no form of: aten::special_airy"],
    f"student=torch_own:Bad('random'),{ALONE}": ["cannot seed; choices: torch.nn.Drop"],
    f"student=torch_own:Bad('generator'),{ALONE}": ["torch.Generator of its own"],
    f"student=torch_own:Bad('noise'),{ALONE}": ["random numbers in evaluation mode"],
    f"student=torch_own:Bad('attribute'),{ALONE}": ["choices: register_buffer"],
    f"teacher=torch_own:Net(width=2),{WEIGHTS},teacher_size=0": ["teacher_size=(0,)"],
    f"teacher=torch_own:Net(width=2),{WEIGHTS},teacher_mean=0.5": ["go together"],
    f"teacher=torch_own:Net(width=2),{WEIGHTS},teacher_mean=128,teacher_std=64": [
        "mean=(128.0,)",
        "not on the scale 0 to 1",
    ],
    "teacher=timm:resnet18,student=resnet-8,teacher_train=body": ["head, all"],
}


@pytest.mark.parametrize("arg", MISTAKES)
def test_a_mistake_is_told_in_a_line(line, arg):
    told = line(arg)
    for words in MISTAKES[arg]:
        assert words in told


@pytest.mark.parametrize("missing", ["torch", "torchax", "timm", "torchvision"])
def test_what_is_not_installed_is_named_with_its_command(line, monkeypatch, missing):
    from kdjax.models.foreign import tracing

    found = importlib.util.find_spec
    tracing.environment.cache_clear()
    zoo.factory.cache_clear()
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == missing else found(name, *rest),
    )
    # Of options that no other test has traced.
    network = "timm:deit_tiny_patch16_224(img_size=8, patch_size=4, depth=1)"
    told = line(f"student={network},{ALONE}")
    wanted = missing if missing.startswith(("timm", "torchv")) else "'kdjax[torch]'"
    assert f"which is not installed: pip install {wanted}" in told


def test_a_module_that_wants_torch_names_the_command(line, folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    told = line(f"student=wants_torch:Net,{ALONE}")
    assert (
        "it needs 'torch', which is not installed: pip install 'kdjax[torch]'" in told
    )


@pytest.mark.parametrize("what", ["dict", "branch", "attribute"])
def test_an_object_is_refused_in_the_same_words(what, tmp_path):
    images = np.zeros((12, 8, 8, 3), np.uint8), np.arange(12) % CLASSES
    (words, *_) = MISTAKES[f"student=torch_own:Bad({what!r}),{ALONE}"]
    with pytest.raises(UserError) as caught:
        kdjax.distill(
            student=torch_own.Bad(what, CLASSES),
            method="supervised",
            data=images,
            test=images,
            batch_size=8,
            workdir=tmp_path,
        )
    assert words in str(caught.value)
    assert len(str(caught.value)) <= 300
