"""The README's Python runs, and its configs exist."""

import dataclasses
import re
from pathlib import Path
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from configs import own
from kdjax import losses
from kdjax.data.stream import Batch
from kdjax.experiment.builders import parse_arg
from kdjax.experiment.config import parse_config
from kdjax.experiment.flags import parse_flags
from kdjax.methods.base import Method, Term, cross_entropy, only
from kdjax.train.step import Step, StepInputs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
OWN, LOSSES, METHOD = BLOCKS[:3]


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


def test_every_config_it_names_exists(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = re.findall(r"configs/\w+\.py(?::[\w=,/.+-]+)?", README)
    names = {name.rstrip(".,") for name in found}
    for config, line in re.findall(
        r"`(configs/\w+_tables\.py)`(.*?)\n\n", README, re.S
    ):
        names |= {
            config + table for table in re.findall(r":(?:table|figure)[\w-]+", line)
        }
    assert len(names) >= 10
    for name in sorted(names - {"configs/common.py"}):
        if name.startswith("configs/own.py"):  # whose files are the reader's
            arg = name.partition(":")[2]
            assert parse_arg(arg, ("",), own.ARGUMENTS)
            continue
        parsed = parse_flags(["kdjax", f"--config={name}", "--workdir=w"])
        assert parse_config(parsed.config).stages, name
