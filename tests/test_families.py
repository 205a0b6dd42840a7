"""Residual networks and VGGs against their sources: sizes, numbers and starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from network import CLASSES, SMALL, Network, assert_close, random_variables

from kdjax import methods, models
from kdjax.models import cifar_resnet, imagenet_resnet
from kdjax.runtime.errors import UserError

CIFAR, IMAGENET, DIGITS = (32, 32, 3), (224, 224, 3), (8, 8, 1)


SMALLEST = {
    "bottleneck_resnet": "bottleneck_resnet-50",
    "cifar_resnet": "cifar_resnet-18",
    "imagenet_resnet": "imagenet_resnet-18",
    "mobilenetv2": "mobilenetv2-0.5",
    "padded_resnet": "padded_resnet-8",
    "plain": "plain-2",
    "resnet": "resnet-8",
    "shufflenetv1": "shufflenetv1",
    "shufflenetv2": "shufflenetv2",
    "simkd": "simkd-2:resnet-8:wrn-10-1",
    "vgg": "vgg-8",
    "wrn": "wrn-10-1",
}


relu = functools.partial(np.maximum, 0)


def pool(x, size, stride, border):
    """Max-pooling, incomplete windows left out."""
    sides = ((0, 0), (border, border), (border, border), (0, 0))
    x = np.pad(x, sides, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    return windows[:, ::stride, ::stride].max((-2, -1))


class Reference(Network):
    """The networks as their sources' text describes them."""

    def layer(self, name, x, stride=1):
        return self.normalise(f"{name}/bn", self.conv(f"{name}/conv", x, stride))

    def head(self, x, taps):
        taps["pooled"] = x.mean((1, 2))
        return taps["pooled"] @ self.params["head/kernel"] + self.params["head/bias"]

    def padded(self, x, stride):
        """Every second pixel, and a quarter of the new channels zero on each side."""
        zeros = np.zeros_like(x[:, ::stride, ::stride, : x.shape[-1] // 2])
        return np.concatenate([zeros, x[:, ::stride, ::stride], zeros], -1)

    def residual(self, x, blocks, large=False, padded=False):
        taps = {"stem": relu(self.layer("stem", x, 2 if large else 1))}
        x = pool(taps["stem"], 3, 2, 1) if large else taps["stem"]
        for stage, count in enumerate(blocks, 1):
            for block in range(1, count + 1):
                name = f"stage{stage}_block{block}"
                first = block == 1
                stride = 2 if first and stage > 1 else 1
                out = relu(self.layer(f"{name}/layer1", x, stride))
                out = self.layer(f"{name}/layer2", out)
                if first and stage > 1 and padded:
                    x = self.padded(x, stride)
                elif first and stage > 1:
                    x = self.layer(f"{name}/shortcut", x, stride)
                pre = x + out
                x = relu(pre)
            taps |= {f"stage{stage}_pre": pre, f"stage{stage}": x}
        return self.head(x, taps), taps

    def vgg(self, x, layers):
        taps = {}
        for stage, count in enumerate(layers):
            name = f"stage{stage}" if stage else "stem"
            if stage in (1, 2, 3):
                x = pool(x, 2, 2, 0)
            for layer in range(1, count + 1):
                pre = self.layer(f"{name}_layer{layer}", x)
                x = relu(pre)
            taps |= {f"{name}_pre": pre, name: x}
        del taps["stem_pre"]
        return self.head(x, taps), taps


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("name", "shape", "reference"),
    [
        ("resnet-14", SMALL, lambda net, x: net.residual(x, (2, 2, 2))),
        (
            "padded_resnet-8",
            (9, 12, 3),
            lambda net, x: net.residual(x, (1, 1, 1), padded=True),
        ),
        ("vgg-11", (17, 26, 3), lambda net, x: net.vgg(x, (1, 1, 2, 2, 2))),
        (
            "imagenet_resnet-10",
            (22, 36, 3),
            lambda net, x: net.residual(x, (1, 1, 1, 1), large=True),
        ),
        ("cifar_resnet-10", SMALL, lambda net, x: net.residual(x, (1, 1, 1, 1))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_equals_numpy(name, shape, reference, train, rng, monkeypatch):
    # One block a stage, to compile in seconds.
    monkeypatch.setitem(imagenet_resnet.BLOCKS, 10, (1, 1, 1, 1))
    monkeypatch.setattr(cifar_resnet, "DEPTHS", (10,))
    variables = random_variables(name, rng)
    images = rng.normal(size=(3, *shape))

    @jax.jit
    def apply(variables, images):
        model = models.create(name, CLASSES)
        return model.apply(variables, images, train, mutable=["batch_stats"])

    outputs, new = apply(variables, images)

    network = Reference(variables, train)
    logits, taps = reference(network, images)
    assert outputs.logits.dtype == np.float64
    assert_close({"logits": outputs.logits}, {"logits": logits})
    assert_close(outputs.features, taps)
    stats = flatten_dict(new["batch_stats"], sep="/")
    assert_close(stats, network.stats if train else network.old)


@pytest.mark.parametrize(
    ("name", "classes", "shape", "count"),
    [
        ("resnet-8", 10, CIFAR, 78_042),
        ("resnet-26", 10, CIFAR, 369_690),
        ("resnet-8", 100, CIFAR, 83_892),
        ("resnet-20", 100, CIFAR, 278_324),
        ("resnet-56", 100, CIFAR, 861_620),
        ("resnet-8x4", 100, CIFAR, 1_233_540),
        # The table of akamaster's README has 0.27, 0.85 and 1.7 million.
        ("padded_resnet-20", 10, CIFAR, 269_722),
        ("padded_resnet-56", 10, CIFAR, 853_018),
        ("padded_resnet-110", 10, CIFAR, 1_727_962),
        ("cifar_resnet-18", 10, CIFAR, 11_173_962),
        ("cifar_resnet-34", 10, CIFAR, 21_282_122),
        ("cifar_resnet-50", 10, CIFAR, 23_520_842),
        ("vgg-8", 100, CIFAR, 3_965_028),
        ("vgg-13", 100, CIFAR, 9_462_180),
        ("imagenet_resnet-18", 1000, IMAGENET, 11_689_512),
        ("imagenet_resnet-34", 1000, IMAGENET, 21_797_672),
    ],
)
def test_parameter_counts_are_the_published_ones(name, classes, shape, count):
    params = models.shapes(name, classes, shape)["params"]

    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("family", "depths", "missing"),
    [
        ("resnet", (8, 26, 110), 0),
        ("vgg", (8, 11, 13, 16, 19), 2),  # the hidden dense layers
        ("imagenet_resnet", (18, 26, 34, 50), 0),
        ("bottleneck_resnet", (50,), 0),
        ("cifar_resnet", (18, 34, 50), 0),
        ("padded_resnet", (8, 110), 0),
    ],
)
def test_depth_counts_convolutions_and_dense_layers(family, depths, missing):
    for depth in depths:
        shapes = models.shapes(f"{family}-{depth}", 10, CIFAR)
        kernels = [
            path
            for path in flatten_dict(shapes["params"])
            if path[-1] == "kernel" and "shortcut" not in path
        ]
        assert len(kernels) == depth - missing


@functools.cache
def outputs(name, shape):
    """Returns the shapes and dtypes of a network's outputs."""
    model = models.create(name, CLASSES)
    images = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
    variables = models.shapes(name, CLASSES, shape)
    return jax.eval_shape(lambda v, x: model.apply(v, x, False), variables, images)


@pytest.mark.parametrize(
    ("name", "shape", "maps"),
    [
        ("resnet-20", CIFAR, [(32, 16), (32, 16), (16, 32), (8, 64)]),
        ("resnet-32x4", CIFAR, [(32, 32), (32, 64), (16, 128), (8, 256)]),
        ("padded_resnet-20", CIFAR, [(32, 16), (32, 16), (16, 32), (8, 64)]),
        (
            "cifar_resnet-18",
            CIFAR,
            [(32, 64), (32, 64), (16, 128), (8, 256), (4, 512)],
        ),
        ("vgg-13", CIFAR, [(32, 64), (16, 128), (8, 256), (4, 512), (4, 512)]),
        # The pooling before the last stage is for images of 64x64 alone.
        ("vgg-8", (64, 64, 3), [(64, 64), (32, 128), (16, 256), (8, 512), (4, 512)]),
        ("vgg-8", (96, 96, 3), [(96, 64), (48, 128), (24, 256), (12, 512), (12, 512)]),
        (
            "imagenet_resnet-18",
            IMAGENET,
            [(112, 64), (56, 64), (28, 128), (14, 256), (7, 512)],
        ),
    ],
)
def test_features_have_the_papers_shapes(name, shape, maps):
    sides = [(5, side, side, channels) for side, channels in maps]
    expected = {"stem": sides[0], "pooled": (5, maps[-1][1])}
    for stage, map_shape in enumerate(sides[1:], 1):
        expected |= {f"stage{stage}": map_shape, f"stage{stage}_pre": map_shape}

    found = outputs(name, shape)
    assert found.logits.shape == (5, CLASSES)
    assert {k: v.shape for k, v in found.features.items()} == expected


def test_every_family_takes_the_digits_and_names_its_features_alike():
    assert SMALLEST.keys() == models.MODELS.keys() - {"tiny"}
    for family, name in SMALLEST.items():
        found = outputs(name, DIGITS)
        features = dict(found.features)
        assert found.logits.shape == (5, CLASSES), family
        assert features.pop("pooled").ndim == 2, family
        assert features.pop("stem").ndim == 4, family
        stages = [f"stage{n}" for n in range(1, len(features) // 2 + 1)]
        assert features.keys() == {*stages, *(f"{s}_pre" for s in stages)}, family
        for stage in stages:
            assert features[stage] == features[f"{stage}_pre"], family


@pytest.mark.parametrize(
    ("student", "scratch"), [("resnet-8", "resnet-14"), ("vgg-8", "vgg-11")]
)
def test_rocket_ties_their_convolutions_alone(student, scratch):
    params = {
        role: models.shapes(name, CLASSES, SMALL)["params"]
        for role, name in (("student", student), ("scratch", scratch))
    }
    leaves = flatten_dict(params["student"])
    modules = {path[:-1] for path, leaf in leaves.items() if leaf.ndim == 4}
    convolutions = {("student", *path) for path in leaves if path[:-1] in modules}

    lower, everywhere = (
        set(methods.create("rocket", {"rocket": {"tied": tied}}).ties(params))
        for tied in ("lower", "all")
    )
    assert everywhere == convolutions
    parts = {path[1].split("_")[0] for path in lower}
    assert parts == {"stem", "stage1"}
    assert lower == {p for p in convolutions if p[1].split("_")[0] in parts}


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("resnet", "resnet-DEPTH or resnet-DEPTHx4"),
        ("resnet-", "resnet-DEPTH or resnet-DEPTHx4"),
        ("resnet-8x2", "resnet-DEPTH or resnet-DEPTHx4"),
        ("resnet-8-4", "resnet-DEPTH or resnet-DEPTHx4"),
        ("resnet-²0", "resnet-DEPTH or resnet-DEPTHx4"),
        ("resnet-08", "resnet-DEPTH or resnet-DEPTHx4"),
        ("resnet-2", "8, 14, 20, 26"),
        ("resnet-18", "imagenet_resnet-DEPTH"),
        ("padded_resnet", "padded_resnet-DEPTH"),
        ("padded_resnet-8x4", "padded_resnet-DEPTH"),
        ("padded_resnet-18", "8, 14, 20, 26"),
        ("cifar_resnet-20", "cifar_resnet-18, cifar_resnet-34, cifar_resnet-50"),
        ("imagenet_resnet-20", "imagenet_resnet-18, imagenet_resnet-26"),
        ("imagenet_resnet", "imagenet_resnet-18, imagenet_resnet-26"),
        ("vgg-9", "vgg-8, vgg-11, vgg-13"),
        ("vgg-8-1", "vgg-8, vgg-11, vgg-13"),
    ],
)
def test_unknown_names_are_told_with_the_choices(name, choices):
    with pytest.raises(UserError) as error:
        models.create(name, 10)

    assert repr(name) in str(error.value)
    assert choices in str(error.value)


# SimKD's network is made by its method; nobody writes its name.
@pytest.mark.parametrize("family", sorted(SMALLEST.keys() - {"simkd"}))
def test_misspelt_families_are_told_with_their_form(family):
    with pytest.raises(UserError) as error:
        models.create(f"{family}x-50", 10)

    choices = str(error.value).split("choices: ")[1].split(" and ")[0].split(", ")
    assert "package.module:Class(argument=value)" in choices
    assert family in {choice.split("-")[0] for choice in choices}


@pytest.mark.parametrize("shape", [(7, 8, 3), (8, 7, 3), (4, 4, 1)])
def test_images_too_small_for_a_vgg_are_told(shape):
    with pytest.raises(UserError) as error:
        models.shapes("vgg-11", 10, shape)

    assert "'vgg-11'" in str(error.value)
    assert f"{shape[0]}x{shape[1]}" in str(error.value)
    assert "\n" not in str(error.value)
