"""Models of Keras and Equinox as teachers."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdjax
from kdjax import models

CLASSES = 3


def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    return images, np.arange(24) % CLASSES


def teaches(model, folder):
    """The teacher's network, after it has taught a student."""
    result = kdjax.distill(
        teacher=model,
        student="resnet-8",
        data=data(),
        test=data(),
        epochs=1,
        batch_size=8,
        workdir=folder,
    )
    assert len(result.accuracies) == 1
    return result.network("teacher")


def pixels(network):
    images = data()[0]
    return ((images / 255 - network.mean) / network.std).astype(np.float32)


def test_a_model_of_keras_teaches(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="keras is not installed")
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    network = teaches(model, tmp_path)
    ours = np.asarray(jax.nn.softmax(network.logits(data()[0])))
    theirs = np.asarray(model(pixels(network), training=False))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_module_of_equinox_teaches(tmp_path):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        head: eqx.nn.Linear

        def __init__(self, key):
            one, two = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(3, 4, 3, key=one)
            self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
            self.head = eqx.nn.Linear(4, CLASSES, key=two)

        def __call__(self, x, state):
            x, state = self.norm(self.conv(x), state)
            return self.head(x.mean((1, 2))), state

    made = eqx.nn.make_with_state(Net)(jax.random.key(0))
    network = teaches(made, tmp_path)
    module, state = eqx.nn.inference_mode(made[0]), made[1]
    x = jnp.transpose(pixels(network), (0, 3, 1, 2))
    run = jax.vmap(module, (0, None), (0, None), axis_name="batch")
    theirs = run(x, state)[0]
    np.testing.assert_allclose(network.logits(data()[0]), theirs, atol=1e-5)


def test_other_things_are_no_models():
    assert models.as_function(object()) is None
    assert models.torch_variables(object()) is None
