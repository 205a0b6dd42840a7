"""The networks against their papers: sizes, numbers in NumPy, and where they start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from network import CLASSES, SMALL, Network, assert_close, random_variables

from kdjax import models
from kdjax.runtime.errors import UserError

CIFAR = (32, 32, 3)


class Reference(Network):
    """A WRN as the papers describe it."""

    def __call__(self, x, depth, widen):
        taps = {"stem": self.conv("stem", x)}
        x = taps["stem"]
        for group in (1, 2, 3):
            width = 16 * widen * 2 ** (group - 1)
            for block in range(1, (depth - 4) // 6 + 1):
                name = f"stage{group}_block{block}"
                stride = 2 if group > 1 and block == 1 else 1
                pre = self.normalise(f"{name}/bn1", x)
                if group > 1 and block == 1:
                    taps[f"stage{group - 1}_pre"] = pre
                out = np.maximum(pre, 0)
                if x.shape[-1] != width:
                    x = self.conv(f"{name}/shortcut", out, stride)
                out = self.conv(f"{name}/conv1", out, stride)
                out = np.maximum(self.normalise(f"{name}/bn2", out), 0)
                x = x + self.conv(f"{name}/conv2", out)
            taps[f"stage{group}"] = x
        taps["stage3_pre"] = self.normalise("bn", x)
        taps["pooled"] = np.maximum(taps["stage3_pre"], 0).mean((1, 2))
        head = self.params["head/kernel"], self.params["head/bias"]
        return taps["pooled"] @ head[0] + head[1], taps


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("depth", "widen"), [(16, 1), (16, 2)])
def test_wrn_equals_numpy(depth, widen, train, rng):
    name = f"wrn-{depth}-{widen}"
    variables = random_variables(name, rng)
    images = rng.normal(size=(3, *SMALL))

    @jax.jit
    def apply(variables, images):
        model = models.create(name, CLASSES)
        return model.apply(variables, images, train, mutable=["batch_stats"])

    outputs, new = apply(variables, images)

    reference = Reference(variables, train)
    logits, taps = reference(images, depth, widen)
    assert outputs.logits.dtype == np.float64
    assert_close({"logits": outputs.logits}, {"logits": logits})
    assert_close(outputs.features, taps)
    stats = flatten_dict(new["batch_stats"], sep="/")
    assert_close(stats, reference.stats if train else reference.old)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("wrn-16-1", 180_916),
        ("wrn-16-2", 703_284),
        ("wrn-40-1", 569_780),
        ("wrn-40-2", 2_255_156),
    ],
)
def test_parameter_counts_are_the_published_ones(name, count):
    params = models.shapes(name, 100, CIFAR)["params"]

    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(("name", "widen"), [("wrn-16-1", 1), ("wrn-16-2", 2)])
def test_features_have_the_papers_shapes(name, widen):
    model = models.create(name, 10)
    images = jax.ShapeDtypeStruct((5, *CIFAR), jnp.float32)
    apply = functools.partial(model.apply, train=False)
    outputs = jax.eval_shape(apply, models.shapes(name, 10, CIFAR), images)

    sides = {1: 32, 2: 16, 3: 8}
    expected = {"stem": (5, 32, 32, 16), "pooled": (5, 64 * widen)}
    for group, side in sides.items():
        shape = (5, side, side, 8 * widen * 2**group)
        expected |= {f"stage{group}": shape, f"stage{group}_pre": shape}
    assert outputs.logits.shape == (5, 10)
    assert {k: v.shape for k, v in outputs.features.items()} == expected


@functools.cache
def start(seed=0, name="wrn-10-1", classes=4, init_index=0, shape=SMALL):
    return models.init(jax.random.key(seed), name, classes, shape, init_index)


def test_kernels_start_he_normal_and_the_rest_neutral():
    variables = start(name="wrn-10-2")

    for path, leaf in flatten_dict(variables).items():
        leaf, where = np.asarray(leaf), "/".join(path)
        if path[-1] == "kernel":
            expected = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            # Five standard errors of a deviation that is estimated from `size` draws.
            bound = 5 / np.sqrt(2 * leaf.size)
            assert abs(leaf.std() / expected - 1) < bound, where
            assert abs(leaf.mean() / expected) < 5 / np.sqrt(leaf.size), where
        else:
            neutral = {"scale": 1, "bias": 0, "mean": 0, "var": 1}[path[-1]]
            np.testing.assert_array_equal(leaf, neutral, err_msg=where)
    # Not truncated: of 147,456 normal draws, some lie beyond four deviations.
    kernel = np.asarray(variables["params"]["stage3_block1"]["conv2"]["kernel"])
    assert abs(kernel).max() > 4 * np.sqrt(2 / (9 * 128))


def test_the_benchmarks_wide_resnets_start_by_fan_out():
    """RepDistiller's `wrn.py`: sqrt(2 / fan_out), and PyTorch's classifier, bias 0."""
    variables, other = start(name="wrn-10-2-fan_out"), start(name="wrn-10-2")
    shapes = [jax.tree.map(np.shape, tree) for tree in (variables, other)]
    assert shapes[0] == shapes[1]
    for path, leaf in flatten_dict(variables["params"]).items():
        leaf, where = np.asarray(leaf), "/".join(path)
        if path[-1] != "kernel":
            neutral = {"scale": 1, "bias": 0}[path[-1]]
            np.testing.assert_array_equal(leaf, neutral, err_msg=where)
            continue
        if path[0] == "head":
            bound = 1 / np.sqrt(128)
            assert 0.98 * bound < abs(leaf).max() <= bound
            expected = bound / np.sqrt(3)
        else:
            height, width, _, channels = leaf.shape
            expected = np.sqrt(2 / (height * width * channels))
        assert abs(leaf.std() / expected - 1) < 5 / np.sqrt(2 * leaf.size), where
    assert models.create("wrn-10-2-fan_in", 4) == models.create("wrn-10-2", 4)


def test_same_start_for_the_same_seed_name_classes_and_copy():
    for other in (start.__wrapped__(), start(shape=(16, 16, 3))):
        jax.tree.map(np.testing.assert_array_equal, other, start())


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"name": "wrn-10-2"}, {"classes": 5}, {"init_index": 1}],
    ids=lambda change: next(iter(change)),
)
def test_another_start_for_another(change):
    def stem(variables):
        return np.asarray(variables["params"]["stem"]["kernel"])

    assert stem(start(**change)).shape == stem(start()).shape
    assert np.all(stem(start(**change)) != stem(start()))


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("resnext-50", "wrn-DEPTH-WIDEN"),
        ("", "wrn-DEPTH-WIDEN"),
        ("wrn", "wrn-DEPTH-WIDEN"),
        ("wrn-16", "wrn-DEPTH-WIDEN"),
        ("wrn-16-1-1", "wrn-DEPTH-WIDEN-START; starts: fan_in, fan_out"),
        ("wrn-16-0", "wrn-DEPTH-WIDEN"),
        ("wrn-16--1", "wrn-DEPTH-WIDEN"),
        ("wrn-16-²", "wrn-DEPTH-WIDEN"),
        ("wrn-a-b", "wrn-DEPTH-WIDEN"),
        ("wrn-17-1", "10, 16, 22, 28"),
        ("wrn-4-1", "10, 16, 22, 28"),
    ],
)
def test_unknown_names_are_told_with_the_choices(name, choices):
    with pytest.raises(UserError) as error:
        models.create(name, 10)

    assert repr(name) in str(error.value)
    assert choices in str(error.value)
