"""Files of PyTorch's tensors: what is read, what is refused, and in which words."""

import argparse
import copy
import os
import pickle
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch, of the extra 'torch', is not installed")

import safetensors.torch
import torch
import torch_compact as compact
import torch_nets as nets

from kdjax.models import import_torch
from kdjax.runtime.errors import UserError

IMAGE = (16, 16, 3)


class Opens:
    """Runs a command of its own when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def resnet(blocks=1, classes=10, **options):
    return nets.ResNet([blocks] * 3, [16, 32, 64], classes, **options)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet()


@pytest.fixture
def refused(tmp_path):
    """Returns the error line for a file with some content."""

    def refused(content, name="resnet-8", classes=10, shape=IMAGE, suffix=".pth"):
        path = tmp_path / f"file{suffix}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError) as error:
            import_torch.load(path, name, classes, shape)
        message = str(error.value)
        assert str(path) in message
        assert "\n" not in message
        return message

    return refused


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


WRAPPINGS = {
    "plain": lambda s: s,
    "DataParallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: {"model": prefixed(s, "_orig_mod.module.")},
    "RepDistiller": lambda s: {
        "epoch": 240,
        "model": s,
        "best_acc": torch.tensor(72.5),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
    },
    "kuangliu": lambda s: {
        "net": prefixed(s, "module."),
        "acc": np.float64(93.1),
        "epoch": 199,
    },
    "akamaster": lambda s: {
        "state_dict": prefixed(s, "module."),
        "best_prec1": 91.7,
    },
    "nested": lambda s: {"model": {"state_dict": s}, "args": argparse.Namespace(a=1)},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": np.float32(0.1)},
    "any name": lambda s: {"student weights": s, "epoch": 3},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_state_dicts_are_found(wrapping, network, tmp_path):
    expected = network.state_dict()
    for legacy in (False, True):
        torch.save(
            WRAPPINGS[wrapping](expected),
            tmp_path / "net.th",
            _use_new_zipfile_serialization=not legacy,
        )
        found = import_torch.load(tmp_path / "net.th", "resnet-8", 10, IMAGE)
        head = found["params"]["head"]["kernel"]
        np.testing.assert_array_equal(head, expected["fc.weight"].numpy().T)
        assert import_torch.num_classes_of(tmp_path / "net.th") == 10


def test_numbers_that_numpy_1_saved_are_read(network, tmp_path):
    content = {"net": network.state_dict(), "acc": np.float64(93.1)}
    path = tmp_path / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    written = path.read_bytes()
    assert written.count(b"numpy._core.multiarray\n") == 1
    path.write_bytes(
        written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    )
    assert import_torch.num_classes_of(path) == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_safetensors_are_read_like_pytorchs(dtype, network, tmp_path):
    state = copy.deepcopy(network).to(dtype).state_dict()
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    torch.save(state, tmp_path / "net.pt")
    trees = [
        import_torch.load(tmp_path / name, "resnet-8", 10, IMAGE)
        for name in ("net.safetensors", "net.pt")
    ]
    jax.tree.map(np.testing.assert_array_equal, *trees)
    assert {leaf.dtype for leaf in jax.tree.leaves(trees)} == {np.dtype(np.float32)}


def test_what_a_file_holds_is_told(tmp_path):
    torch.save({"net": prefixed(resnet(3).state_dict(), "module.")}, tmp_path / "a.pth")
    found = import_torch.inspect(tmp_path / "a.pth")
    assert (found.format, found.wrapping, found.prefix) == (
        "PyTorch",
        ("net",),
        "module.",
    )
    assert len(found.keys) == 21 * 5 + 2  # 19 layers, 2 shortcuts; the classifier
    (guess,) = found.guesses.values()
    assert guess == import_torch.Guess("resnet-20", 10, (32, 32, 3))
    assert "looks like resnet-20 with 10 classes" in found.seems


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_file_runs_nothing(protocol, refused, tmp_path):
    mark = tmp_path / "mark"
    bad = {"model": resnet().state_dict(), "extra": Opens(mark)}
    assert "holds more than tensors (it names posix.system)" in refused(bad)
    refused(pickle.dumps(Opens(mark), protocol=protocol))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Opens(mark), protocol=protocol))
    assert mark.exists()  # it would have


def test_a_whole_module_is_refused(refused, network):
    message = refused(network)
    assert "it names torch_nets.ResNet" in message
    assert "save `model.state_dict()`" in message


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_program_is_refused(tmp_path):
    program = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    program.save(tmp_path / "net.pt")
    with pytest.raises(UserError, match="TorchScript program"):
        import_torch.load(tmp_path / "net.pt", "resnet-8", 10, IMAGE)


def test_damaged_files_are_refused(refused, network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for content in (b"", b"no tensors", whole[: len(whole) // 2]):
        assert "not a complete file of torch.save" in refused(content)
        message = refused(content, suffix=".safetensors")
        assert "not a complete .safetensors file" in message


def test_files_that_are_not_there_or_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*net\.pth"):
        import_torch.inspect(tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"'\.h5'; choices: \.pth, "):
        import_torch.inspect(tmp_path / "net.h5")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_library_that_is_missing_is_named(suffix, monkeypatch, tmp_path):
    for library in ("torch", "safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / f"net{suffix}").touch()
    with pytest.raises(UserError, match=r"pip install 'kdjax\[torch\]'"):
        import_torch.inspect(tmp_path / f"net{suffix}")


def test_content_without_a_state_dict_is_refused(refused, network):
    assert "it holds a list" in refused([torch.ones(2)])
    assert "it holds 'epoch'" in refused({"epoch": 3})
    state = network.state_dict()
    state["fc.bias"][3] = float("nan")
    assert "fc.bias has values that are not finite" in refused(state)
    with torch.no_grad():
        state["fc.bias"][3] = 0


def test_another_size_is_named(refused):
    message = refused(resnet(2, 100).state_dict(), "resnet-8", 100)
    assert "not resnet-8 with 100 classes: it looks like resnet-14 with 100" in message
    assert "; by the names of RepDistiller, not expected: layer1.1.conv1" in message
    assert message.endswith("and 27 more")  # three blocks of ten tensors
    message = refused(resnet(1).state_dict(), "resnet-14")
    assert "it looks like resnet-8 with 10 classes" in message
    assert "RepDistiller, missing: layer1.1." in message


def test_another_number_of_classes_is_named(refused):
    message = refused(resnet(1, 100).state_dict())
    assert "it looks like resnet-8 with 100 classes" in message
    assert "of another shape: fc.bias [100], not [10], fc.weight [100, 64]" in message


def test_other_channels_are_named(refused, network):
    message = refused(network.state_dict(), shape=(16, 16, 1))
    assert "for 3-channel images; by" in message
    assert "conv1.weight [16, 3, 3, 3], not [16, 1, 3, 3]" in message


def test_other_images_of_a_plain_network_are_named(refused):
    state = compact.Plain("C16 P C16 P", 10, 32).state_dict()
    message = refused(state, "plain-2", shape=(28, 28, 3))
    assert (
        "it looks like plain-2 with 10 classes for 3-channel images of 32x32" in message
    )


def test_another_kind_of_network_is_named(refused):
    bare = resnet(3, naming="akamaster").state_dict()
    message = refused({"state_dict": prefixed(bare, "module.")}, "resnet-20")
    assert "not resnet-20 with 10 classes: it looks like padded_resnet-20" in message
    options = resnet(3, naming="kuangliu").state_dict()
    message = refused(options, "padded_resnet-20")
    assert "it looks like resnet-20 with 10 classes" in message
    widths = [64, 128, 256, 512]
    state = nets.ResNet([2] * 4, widths, 10, naming="kuangliu").state_dict()
    message = refused({"net": state, "acc": 95.1}, "imagenet_resnet-18")
    assert "it looks like cifar_resnet-18 with 10 classes" in message
    # Such a file was published under the name of ResNet-110.
    deep = nets.ResNet([18] * 3, [16, 32, 64], 10, bottleneck=True, stem=16)
    message = refused(deep.state_dict(), "resnet-110")
    assert "it looks like a ResNet-164 (18 + 18 + 18 bottlenecks, 16-32-64" in message


def test_architectures_that_kdjax_lacks_are_described(refused):
    bare = resnet(3, naming="akamaster").state_dict()
    thin = {key: value for key, value in bare.items() if "layer3.2" not in key}
    message = refused(prefixed(thin, "module."), "resnet-20")
    assert "ResNet-18 (3 + 3 + 2 blocks, 16-32-64 channels" in message
    assert "shortcuts without parameters" in message
    assert "pre-activation" not in message
    before = {key: value for key, value in bare.items() if not key.startswith("bn1")}
    assert "convolutions (pre-activation)" in refused(before, "resnet-20")
    widths = [64, 128, 256, 512]
    state = nets.ResNet([2, 2, 2, 1], widths, 10, naming="kuangliu").state_dict()
    message = refused(state, "imagenet_resnet-18")
    assert "ResNet-16 (2 + 2 + 2 + 1 blocks, 64-128-256-512 channels" in message
    assert "a first kernel of 3x3" in message
    narrow = nets.ResNet([3] * 3, [16, 32, 64], 10, bottleneck=True, stem=16)
    message = refused(narrow.state_dict(), "resnet-8")
    assert "ResNet-29 (3 + 3 + 3 bottlenecks" in message
    layers = torch.nn.Module()
    layers.features = torch.nn.Sequential(nets.conv(3, 64), torch.nn.BatchNorm2d(64))
    layers.classifier = torch.nn.Linear(64, 10)
    assert "of one sequence 'features'" in refused(layers.state_dict(), "vgg-8")
    assert "no classifier" in refused({"a.weight": torch.ones(3)})
    state = {"a.weight": torch.ones(4, 3)}
    assert "a network with 4 classes that kdjax does not know" in refused(state)


def test_networks_that_pytorch_lacks_are_refused(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "net.pth")
    for name in ("simkd-2:resnet-8:wrn-10-1", "nonsense-3"):
        with pytest.raises(UserError, match=r"unknown model .*choices:.*resnet"):
            import_torch.load(tmp_path / "net.pth", name, 10, IMAGE)
    with pytest.raises(UserError, match="depth 9 is not 6n"):
        import_torch.load(tmp_path / "net.pth", "resnet-9", 10, IMAGE)
    variables = import_torch.load(tmp_path / "net.pth", "resnet-8", 10, IMAGE)
    with pytest.raises(UserError, match="unknown layout of resnet-8 'x'; choices: Rep"):
        import_torch.to_state_dict(variables, "resnet-8", "x")
    torch.save({"a": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no network that can be imported"):
        import_torch.num_classes_of(tmp_path / "other.pth")
