"""The command that looks into PyTorch's files, on a network trained in PyTorch."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch, of the extra 'torch', is not installed")

import torch
import torch.nn.functional as F  # noqa: N812
import torch_nets as nets

from kdjax.data import sources
from kdjax.import_torch.__main__ import main
from kdjax.models import import_torch
from kdjax.runtime.errors import UserError
from kdjax.train.loop import load_network
from kdjax.train.saved_network import SavedNetwork, read_network, save_network

DIGITS = (8, 8, 1)


def inputs(split, mean, std):
    images = split.images.transpose(0, 3, 1, 2) / np.float32(255)
    return torch.from_numpy((images - np.float32(mean)) / np.float32(std))


@pytest.fixture(scope="module")
def trained():
    """Returns a ResNet-8 after some steps on the digits, and which it gets right."""
    digits = sources.load("digits")
    images = inputs(digits.train, digits.mean[0], digits.std[0])
    labels = torch.from_numpy(digits.train.labels.astype(np.int64))
    torch.manual_seed(0)
    network = nets.ResNet([1] * 3, [16, 32, 64], 10, naming="kuangliu", channels=1)
    weights = list(network.parameters())
    for batch in torch.randperm(len(labels))[:1408].split(64):
        loss = F.cross_entropy(network(images[batch])[0], labels[batch])
        # By hand: importing torch.optim takes seconds.
        for weight, slope in zip(
            weights, torch.autograd.grad(loss, weights), strict=True
        ):
            weight.data -= 0.2 * slope
    with torch.no_grad():
        logits, _ = network.eval()(inputs(digits.test, digits.mean[0], digits.std[0]))
        plain, _ = network(inputs(digits.test, 0.0, 1.0))
    right = [
        int((scores.numpy().argmax(1) == digits.test.labels).sum())
        for scores in (logits, plain)
    ]
    return network, right


@pytest.fixture
def file(trained, tmp_path):
    network, _ = trained
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"net": state, "acc": 90.0}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def test_a_network_is_told_evaluated_and_written(trained, file, tmp_path, capsys):
    _, (right, _) = trained
    assert right > 180  # more than half of 360
    out = tmp_path / "out"
    argv = [str(file), "--data=digits", f"--out={out}", "--rows=2"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{file}: PyTorch, state dict in ['net'], all keys start with 'module.'"
    )
    # 77,754 parameters, two statistics of 336 channels.
    assert lines[1] == "47 tensors, 78,426 values"
    assert lines[2] == (
        "fits resnet-8 with 10 classes for 1-channel images, by the names of "
        "akamaster with option B"
    )
    assert " ".join(lines[3].split()) == (
        "conv1.weight params/stem/conv/kernel [16, 1, 3, 3] -> [3, 3, 1, 16]"
    )
    assert "batch_stats/" not in lines[4]
    assert lines[5] == "  and 45 more"
    percent = 100 * right / 360
    assert lines[6] == f"test accuracy on digits: {percent:.2f} % ({right} of 360)"
    assert lines[7:] == [f"{out} written"]
    saved, variables = read_network(out)
    assert saved == SavedNetwork("resnet-8", 10, DIGITS, "teacher.pth")
    expected = import_torch.load(file, "resnet-8", 10, DIGITS)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    jax.tree.map(
        np.testing.assert_array_equal,
        load_network(out, "resnet-8", 10, DIGITS),
        expected,
    )
    assert main(argv) == 2
    assert "holds a network already (network.json)" in capsys.readouterr().err


def test_images_can_be_normalised_otherwise(trained, file, capsys):
    _, (own, plain) = trained
    assert own != plain
    assert main([str(file), "--data=digits", "--mean=0", "--std=1", "--rows=0"]) == 0
    assert f"({plain} of 360)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model=resnet-14"],
            "teacher.pth is not resnet-14 with 10 classes: it looks",
        ),
        (["--model=nonsense"], "unknown model 'nonsense'"),
        (["--data=nonsense"], "unknown data set 'nonsense'; choices: digits, cifar10"),
        (["--data=imagenet"], "does not fit into memory"),
        (["--mean=0.5"], "--mean and --std are for the images of --data"),
        (["--data=digits", "--mean=1,2"], "--mean has 2 numbers; the images of digits"),
        (["--data=digits", "--std=0"], "deviations must be positive"),
        (["--data=digits", "--std=a"], "argument --std: invalid"),
        (["--rows=-1"], "--rows=-1 is negative"),
    ],
)
def test_mistakes_end_in_one_line(options, message, file, capsys):
    assert main([str(file), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_files_of_other_networks_end_in_one_line(tmp_path, capsys):
    for content, message in (
        ({"a.weight": torch.ones(3)}, "no network that can be imported: it has no"),
        (nets.ResNet([1] * 3, [16, 32, 64], 7).state_dict(), "7 classes, digits 10"),
    ):
        torch.save(content, tmp_path / "other.pth")
        assert main([str(tmp_path / "other.pth"), "--data=digits"]) == 2
        assert message in capsys.readouterr().err


def test_damaged_folders_are_told(file, tmp_path):
    variables = import_torch.load(file, "resnet-8", 10, DIGITS)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no network was saved"):
        read_network(out)
    save_network(out, SavedNetwork("resnet-8", 10, DIGITS), variables)
    settings = json.loads((out / "network.json").read_text())
    for change, message in (
        ({"digest": "0"}, "not those that network.json names"),
        ({"num_classes": 11}, "cannot be read"),
        ({"another": 1}, "cannot be read"),
    ):
        (out / "network.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(UserError, match=message):
            read_network(out)
    (out / "network.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_network(out)
    (out / "network.json").unlink()
    with pytest.raises(UserError, match=r"already \(networks/student"):
        save_network(out, SavedNetwork("resnet-8", 10, DIGITS), variables)
