"""How networks of the built-in families are initialised."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from network import SMALL

from kdjax import models


@functools.cache
def start(name):
    variables = models.init(jax.random.key(0), name, 100, SMALL)
    return {
        "/".join(path): np.asarray(leaf)
        for path, leaf in flatten_dict(variables["params"]).items()
    }


def assert_drawn(leaf, std, where):
    """Asserts mean zero and the deviation, within five standard errors."""
    assert abs(leaf.mean()) < 5 * std / np.sqrt(leaf.size), where
    assert abs(leaf.std() / std - 1) < 5 / np.sqrt(2 * leaf.size), where


@pytest.mark.parametrize("name", ["resnet-8", "vgg-8"])
def test_convolutions_start_he_normal_by_fan_out_and_the_rest_neutral(name):
    for path, leaf in start(name).items():
        if path.startswith("head/"):
            continue
        if path.endswith("/kernel"):
            fan_out = leaf.shape[0] * leaf.shape[1] * leaf.shape[3]
            assert_drawn(leaf, np.sqrt(2 / fan_out), path)
        else:
            neutral = {"scale": 1, "bias": 0}[path.split("/")[-1]]
            np.testing.assert_array_equal(leaf, neutral, err_msg=path)


def test_convolutions_start_normal_and_not_truncated():
    kernel = start("vgg-8")["stage4_layer1/conv/kernel"]
    # Of two million normal draws, some lie beyond four deviations.
    assert abs(kernel).max() > 4 * np.sqrt(2 / (9 * 512))


def test_resnets_classifiers_start_uniform_as_pytorchs():
    kernel, bias = (start("resnet-8")[f"head/{part}"] for part in ("kernel", "bias"))

    bound = 1 / 8  # 1 / sqrt(64)
    for leaf in (kernel, bias):
        assert 0.95 * bound < abs(leaf).max() <= bound
        assert_drawn(leaf, bound / np.sqrt(3), "head")


def test_vggs_classifiers_start_normal_and_small():
    assert_drawn(start("vgg-8")["head/kernel"], 0.01, "head")
    np.testing.assert_array_equal(start("vgg-8")["head/bias"], 0)
