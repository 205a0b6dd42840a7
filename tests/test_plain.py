"""Plain CNNs against the published specifications: sizes, numbers, starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from network import CLASSES, Network, assert_close

from kdjax import models
from kdjax.models.plain import CIFAR10, CIFAR100
from kdjax.runtime.errors import UserError

CIFAR = (32, 32, 3)
# As published; the others follow from the specifications.
COUNTS = {
    (2, 100): 215_172,
    (4, 100): 475_652,
    (10, 100): 2_931_460,
    (2, 10): 13_082,
    (4, 10): 37_338,
    (10, 10): 2_487_850,
}


def parameters(name, classes, shape=CIFAR):
    return models.shapes(name, classes, shape)["params"]


@pytest.mark.parametrize(("depth", "classes"), COUNTS)
def test_parameter_counts(depth, classes):
    leaves = jax.tree.leaves(parameters(f"plain-{depth}", classes))
    assert sum(leaf.size for leaf in leaves) == COUNTS[depth, classes]


@pytest.mark.parametrize("specification", [CIFAR10, CIFAR100])
def test_depths_count_convolutions(specification):
    for depth, layers in specification.items():
        convolutions = [layer for layer in layers if layer[0] == "C"]
        assert len(convolutions) == depth
        if depth % 2:
            longer = [layer for layer in specification[depth + 1] if layer[0] == "C"]
            assert convolutions == longer[:-1]


@pytest.mark.parametrize("train", [True, False])
def test_equals_numpy(train, rng):
    """A network of every kind of layer: convolutions, pooling and a dense layer."""
    with jax.enable_x64(True):
        name, shape = "plain-7", (16, 16, 3)
        model = models.create(name, CLASSES)
        variables = jax.tree.map(
            lambda leaf: (
                rng.uniform(0.5, 1.5, leaf.shape)
                if leaf.ndim == 1
                else rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
            ),
            models.shapes(name, CLASSES, shape, jnp.float64),
        )
        images = rng.normal(size=(2, *shape))
        apply = jax.jit(
            lambda *arrays: model.apply(*arrays, train, mutable=["batch_stats"])
        )
        found, new = apply(variables, images)
    network, taps, x, stage, conv = Network(variables, train), {}, images, 1, 0
    for kind, _ in CIFAR10[7]:
        if kind == "C":
            conv += 1
            x = network.conv(f"conv{conv}", x)
            taps.setdefault("stem", x)
            taps[f"stage{stage}_pre"] = x = network.normalise(f"bn{conv}", x)
            taps[f"stage{stage}"] = x = np.maximum(x, 0)
        elif kind == "P":
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
            stage += 1
        else:
            dense = network.params["dense/kernel"]
            x = np.maximum(x.reshape(2, -1) @ dense + network.params["dense/bias"], 0)
    taps["pooled"] = x
    logits = x @ network.params["head/kernel"] + network.params["head/bias"]
    np.testing.assert_allclose(found.logits, logits, rtol=1e-9)
    assert_close(found.features, taps)
    if train:
        assert_close(flatten_dict(new["batch_stats"], sep="/"), network.stats)


def test_starts_as_pytorch_does():
    variables = models.init(jax.random.key(0), "plain-4", 100, CIFAR)
    params = variables["params"]
    for name, fan_in in (("conv2", 9 * 32), ("head", 8 * 8 * 64)):
        bound = 1 / np.sqrt(fan_in)
        for leaf in params[name].values():
            assert np.abs(leaf).max() <= bound
            assert np.abs(leaf).max() > 0.9 * bound
    kernel = np.asarray(params["head"]["kernel"])
    np.testing.assert_allclose(kernel.std(), 1 / np.sqrt(3 * 4096), rtol=0.02)


def test_images_that_pool_to_nothing_are_refused():
    with pytest.raises(UserError, match=r"'plain-8': images of 8x8 are pooled"):
        parameters("plain-8", 10, (8, 8, 1))
    parameters("plain-6", 10, (8, 8, 1))
    with pytest.raises(UserError, match=r"unknown model 'plain-11'; choices: plain-2"):
        models.create("plain-11", 10)
