"""Networks imported from PyTorch compute what they do there."""

import functools

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch, of the extra 'torch', is not installed")

import torch
import torch_nets as nets

from kdjax import models
from kdjax.models import import_torch


def randomised(network, seed=0):
    """Gives BatchNorms scales, shifts and statistics that are not the initial ones."""
    draw = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            shape = module.weight.shape
            module.weight.data = 0.5 + torch.rand(shape, generator=draw)
            module.bias.data = 0.2 * torch.randn(shape, generator=draw)
            module.running_mean = 0.3 * torch.randn(shape, generator=draw)
            module.running_var = 0.5 + 1.5 * torch.rand(shape, generator=draw)
    return network


def resnet(blocks, **options):
    return functools.partial(nets.ResNet, [blocks] * 3, [16, 32, 64], 10, **options)


CASES = {
    "resnet-8": (resnet(1), 16),
    "resnet-14 kuangliu": (resnet(2, naming="kuangliu"), 16),
    "resnet-8x4": (
        functools.partial(nets.ResNet, [1] * 3, [64, 128, 256], 10, stem=32),
        16,
    ),
    "wrn-16-1": (functools.partial(nets.WRN, 16, 1, 10), 16),
    "wrn-10-2": (functools.partial(nets.WRN, 10, 2, 10), 16),
}


@functools.cache
def _apply(name):
    module = models.create(name, 10)

    @functools.partial(jax.jit, static_argnums=2)
    def apply(variables, images, train):
        outputs = module.apply(
            variables, images, train=train, mutable=["batch_stats"] if train else []
        )[0]
        return outputs.logits, dict(outputs.features)

    return apply


def close(found, expected):
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_features_are_pytorchs(case, tmp_path):
    make, side = CASES[case]
    name = case.split()[0]
    torch.manual_seed(1)
    network = randomised(make())
    torch.save(network.state_dict(), tmp_path / "net.pth")
    shape = (side, side, 3)
    variables = import_torch.load(tmp_path / "net.pth", name, 10, shape)
    expected = models.shapes(name, 10, shape)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    images = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    for train in (False, True):
        network.train(train)
        with torch.no_grad():
            logits, features = network(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        found, maps = _apply(name)(variables, images, train)
        close(found, logits.numpy())
        assert train or features.keys() == maps.keys()
        for level, value in features.items():
            value = value.numpy()
            close(
                maps[level], value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
            )
