"""The Python of the README and of the pages runs, with what it needs."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pages
import tiny

from kdjax import losses, models
from kdjax.data.stream import Batch
from kdjax.methods.base import Method, Term, cross_entropy, only
from kdjax.train.state import StepInputs
from kdjax.train.step import Step

(LOSSES,) = pages.blocks("README.md", "python")
OWN = pages.blocks("docs/own-data.md", "python")[1]
METHOD, MODEL = pages.blocks("docs/extend.md", "python")


class MyNet(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def test_distilling_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    names = {
        "MyNet": MyNet,
        "images": rng.integers(0, 256, (40, 8, 8, 3), np.uint8),
        "labels": np.arange(40) % 10,
        "x": rng.integers(0, 256, (20, 8, 8, 3), np.uint8),
        "y": np.arange(20) % 10,
    }
    text = OWN.replace("teacher.pth:resnet-20", f"{tiny.TEACHER}")
    text = text.replace("epochs=30", "epochs=1").replace("runs/mine", str(tmp_path))
    assert text.count("\n") <= 13
    exec(text, names)
    assert names["result"].predict(names["x"]).shape == (20, 10)


def test_a_loss_is_used_alone():
    assert pages.blocks("docs/losses.md", "python") == [LOSSES]
    rng = np.random.default_rng(0)
    names = {
        "apply": lambda params, images: images @ params,
        "params": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
        "images": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32),
        "labels": jnp.array([0, 1, 2, 0]),
        "teacher_logits": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
    }
    exec(LOSSES, names)
    assert names["grads"].shape == (6, 3)
    assert np.all(np.isfinite(names["grads"]))


def test_a_new_method_is_one_class():
    names = {
        "dataclasses": dataclasses,
        "ClassVar": ClassVar,
        "Method": Method,
        "Term": Term,
        "cross_entropy": cross_entropy,
        "losses": losses,
        "only": only,
        # Where the dataclass looks for its module.
        "__name__": __name__,
    }
    exec(METHOD, names)
    step = Step(
        names["LogitMSE"](),
        "wrn-10-1",
        {"expert": "wrn-10-1"},
        3,
        (8, 8, 1),
        optimisers=(optax.sgd(0.1),),
    )
    key = jax.random.key(0)
    image = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
    label = jax.ShapeDtypeStruct((4,), jnp.int32)
    state = jax.eval_shape(step.init, step.shapes(), {}, key, label)
    frozen = {"expert": step.shapes()["student"]}
    batch = Batch(image, label, label)
    targets = jax.eval_shape(step.targets, frozen, image)
    inputs = StepInputs(batch, targets)
    gradients, state, _ = jax.eval_shape(step.gradients, state, inputs, key)
    measured = gradients.metrics
    jax.eval_shape(step.apply_gradients, state, gradients.params)
    assert {"ce/student", "mse/expert", "loss", "accuracy/student"} == set(measured)


def test_a_network_of_ones_own_is_a_class(tmp_path, monkeypatch):
    (tmp_path / "pages_nets.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    shapes = models.shapes("pages_nets:TinyNet(width=8)", 10, (8, 8, 3))
    assert shapes["params"]["conv"]["kernel"].shape == (3, 3, 3, 8)
