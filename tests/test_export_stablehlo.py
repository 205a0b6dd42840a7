"""StableHLO files compute what the networks compute, with BatchNorm folded."""

import functools

import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.export import stablehlo
from kdjax.export.folding import fold
from kdjax.export.graph import trace


@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("name", ["resnet-8", "plain-4"])
def test_networks(name, uint8, tmp_path):
    network = exported.deployed(name, (8, 8, 3))
    stablehlo.write(network, tmp_path / "model.stablehlo", uint8=uint8)
    images = exported.pixels(network.image_shape)
    expected = network.apply(uint8=True)(images)
    shown = images
    if not uint8:
        shown = exported.normalised(images).transpose(0, 2, 3, 1)
    call = stablehlo.load(tmp_path / "model.stablehlo")
    for count in (1, 5):
        logits = jax.jit(call)(shown[:count])
        np.testing.assert_allclose(logits, expected[:count], rtol=1e-4, atol=1e-5)


# One of each further kind of network, and the side of its images.
FAMILIES = {
    "imagenet_resnet-18": 32,
    "mobilenetv2-0.5": 32,
    "padded_resnet-8": 16,
    "shufflenetv1": 16,
    "shufflenetv2": 16,
    "simkd-2:resnet-8:resnet-8x4": 16,
    "vgg-8": 16,
    "wrn-16-1": 16,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, tmp_path):
    network = exported.deployed(name, (FAMILIES[name], FAMILIES[name], 3))
    stablehlo.write(network, tmp_path / "model.stablehlo", uint8=True)
    images = exported.pixels(network.image_shape)
    expected = np.asarray(jax.jit(network.apply(uint8=True))(images))
    logits = jax.jit(stablehlo.load(tmp_path / "model.stablehlo"))(images)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_it_is_for_all_platforms_and_folded(tmp_path):
    network = exported.deployed("resnet-8", (8, 8, 3))
    stablehlo.write(network, tmp_path / "model.stablehlo")
    content = (tmp_path / "model.stablehlo").read_bytes()
    loaded = jax.export.deserialize(bytearray(content))
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    text = loaded.mlir_module()
    assert "rsqrt" not in text
    assert "stablehlo.multiply" not in text


def _conv(weights, x):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, weights, (1, 1), "SAME", dimension_numbers=dimensions
    )


SCALE = jnp.array([2.0, 3.0, 0.5]).reshape(1, 1, 1, 3)
conv = functools.partial(_conv, jnp.ones((3, 3, 3, 3)))
# A function, and how many operations may stay.
FOLDED = {
    "scaled and shifted": (lambda x: (conv(x) - SCALE) * SCALE + 1, 1),
    "the images' scale stays": (lambda x: conv(x * SCALE + 1), 2),
    "read twice": (lambda x: conv(x) + conv(x) * SCALE, 4),
    "the middle is read": (lambda x: _middle(conv(x) * SCALE), 4),
    "an image's own factor": (lambda x: conv(x) * x.mean((1, 2, 3), keepdims=True), 5),
    "along the width": (lambda x: conv(x) * jnp.arange(1.0, 4).reshape(1, 1, 3, 1), 2),
    "subtracted from a constant": (lambda x: SCALE - conv(x), 1),
    "a constant divided": (lambda x: SCALE / (1 + conv(x) ** 2), 4),
}


def _middle(y):
    return y * 2 + jnp.tanh(y)


@pytest.mark.parametrize("case", FOLDED)
def test_folding(case):
    function, count = FOLDED[case]
    graph = fold(trace(function, (4, 3, 3), jnp.float32))
    names = [operation.name for operation in graph.operations]
    assert len(names) <= count, names
    images = jax.random.normal(jax.random.key(0), (2, 4, 3, 3))
    np.testing.assert_allclose(graph(images), function(images), 1e-5, 1e-5)
