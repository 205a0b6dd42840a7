"""The benchmark's MobileNetV2, ShuffleNets and ResNet-50 against their sources."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from network import CLASSES, SMALL, Network, assert_close, convolve, drawn

from kdjax import models
from kdjax.models import grouped
from kdjax.models.imagenet_resnet import ImageNetResNet
from kdjax.models.layers import channel_shuffle
from kdjax.models.mobilenetv2 import MobileNetV2
from kdjax.models.shufflenetv1 import ShuffleNetV1
from kdjax.models.shufflenetv2 import ShuffleNetV2
from kdjax.runtime import backend
from kdjax.runtime.errors import UserError

CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)
# Few blocks, to compile in seconds; the last of MobileNetV2's has a shortcut.
INVERTED = (((1, 12, 1, 1),), ((3, 20, 2, 2), (3, 24, 1, 1)))
SHUFFLED = ((48, 2), (72, 2))
TINY = {
    "mobilenetv2": MobileNetV2(0.5, CLASSES, INVERTED),
    "shufflenetv1": ShuffleNetV1(CLASSES, SHUFFLED),
    "shufflenetv2": ShuffleNetV2(CLASSES, SHUFFLED),
    "bottleneck_resnet": ImageNetResNet((1, 2), CLASSES, True, True),
    "imagenet_resnet": ImageNetResNet((2, 1), CLASSES, True),
}
relu = functools.partial(np.maximum, 0)


def in_groups(x, kernel, stride=1):
    """Every group's maps with its own kernels."""
    groups = x.shape[-1] // kernel.shape[2]
    parts = zip(np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True)
    return np.concatenate([convolve(p, own, stride) for p, own in parts], -1)


def shuffle(x, groups):
    """Channel i of group g goes to position i * groups + g."""
    out, size = np.empty_like(x), x.shape[-1] // groups
    for g in range(groups):
        for i in range(size):
            out[..., i * groups + g] = x[..., g * size + i]
    return out


class Reference(Network):
    """The networks as their sources' text describes them."""

    def layer(self, name, x, stride=1):
        maps = in_groups(x, self.params[f"{name}/conv/kernel"], stride)
        return self.normalise(f"{name}/bn", maps)

    def head(self, x, taps):
        taps["pooled"] = x.mean((1, 2))
        return taps["pooled"] @ self.params["head/kernel"] + self.params["head/bias"]

    def mobilenetv2(self, x):
        x = relu(self.layer("stem", x, 2))
        taps = {"stem": x}
        strides = {1: (1,), 2: (2, 1, 1)}
        for stage, blocks in strides.items():
            for block, stride in enumerate(blocks, 1):
                name = f"stage{stage}_block{block}"
                out = relu(self.layer(f"{name}/expand", x))
                out = relu(self.layer(f"{name}/depthwise", out, stride))
                out = self.layer(f"{name}/project", out)
                # 6, 10, 10 and 12 channels: one shortcut alone.
                x = x + out if (stage, block) == (2, 2) else out
            taps |= {f"stage{stage}": x, f"stage{stage}_pre": x}
        return self.head(relu(self.layer("last", x)), taps), taps

    def shufflenetv1(self, x):
        x = relu(self.layer("stem", x))
        taps = {"stem": x}
        for stage in (1, 2):
            for block in (1, 2):
                name, stride = f"stage{stage}_block{block}", 3 - block
                out = relu(self.layer(f"{name}/reduce", x))
                out = shuffle(out, 1 if stage == block == 1 else 3)
                out = relu(self.layer(f"{name}/depthwise", out, stride))
                out = self.layer(f"{name}/expand", out)
                if stride == 2:
                    mean = np.eye(x.shape[-1])[None, None] / 9
                    small = convolve(x, np.tile(mean, (3, 3, 1, 1)), 2)
                    pre = np.concatenate([out, small], -1)
                else:
                    pre = out + x
                x = relu(pre)
            taps |= {f"stage{stage}": x, f"stage{stage}_pre": pre}
        return self.head(x, taps), taps

    def shufflenetv2(self, x):
        x = relu(self.layer("stem", x))
        taps = {"stem": x}
        for stage in (1, 2):
            for block in (1, 2):
                name, stride = f"stage{stage}_block{block}", 3 - block
                if stride == 2:
                    kept = self.layer(f"{name}_shortcut/depthwise", x, 2)
                    kept = relu(self.layer(f"{name}_shortcut/last", kept))
                    out = x
                else:
                    kept, out = np.split(x, 2, -1)
                out = relu(self.layer(f"{name}/first", out))
                out = self.layer(f"{name}/depthwise", out, stride)
                out = self.layer(f"{name}/last", out)
                pre = np.concatenate([kept, out], -1)
                x = shuffle(np.concatenate([kept, relu(out)], -1), 2)
            taps |= {f"stage{stage}": x, f"stage{stage}_pre": pre}
        return self.head(relu(self.layer("last", x)), taps), taps

    def bottlenecks(self, x, blocks):
        taps = {}
        for stage, count in enumerate(blocks, 1):
            for block in range(1, count + 1):
                name = f"stage{stage}_block{block}"
                stride = 2 if stage > 1 and block == 1 else 1
                out = relu(self.layer(f"{name}/layer1", x))
                out = relu(self.layer(f"{name}/layer2", out, stride))
                out = self.layer(f"{name}/layer3", out)
                if block == 1:
                    x = self.layer(f"{name}/shortcut", x, stride)
                pre = x + out
                x = relu(pre)
            taps |= {f"stage{stage}": x, f"stage{stage}_pre": pre}
        return self.head(x, taps), taps

    def bottleneck_resnet(self, x):
        x = relu(self.layer("stem", x))
        logits, taps = self.bottlenecks(x, (1, 2))
        return logits, {"stem": x, **taps}

    def imagenet_resnet(self, x):
        stem = relu(self.layer("stem", x, 2))
        padded = np.pad(stem, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        x = windows[:, ::2, ::2].max((-2, -1))
        logits, taps = self.bottlenecks(x, (2, 1))
        return logits, {"stem": stem, **taps}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "train", "unroll"),
    [(name, True, True) for name in TINY]
    + [("shufflenetv2", False, True), ("shufflenetv1", True, False)],
)
def test_equals_numpy(name, train, unroll, rng, monkeypatch):
    # XLA's own grouped convolutions, as on TPUs, give the same.
    monkeypatch.setattr(backend, "unroll_groups", lambda: unroll)
    images = rng.normal(size=(3, *SMALL))
    model = TINY[name]
    start = functools.partial(model.init, train=False)
    variables = drawn(jax.eval_shape(start, jax.random.key(0), images), rng)

    @jax.jit
    def apply(variables, images):
        return model.apply(variables, images, train, mutable=["batch_stats"])

    outputs, new = apply(variables, images)

    network = Reference(variables, train)
    logits, taps = getattr(network, name)(images)
    assert outputs.logits.dtype == np.float64
    assert_close({"logits": outputs.logits}, {"logits": logits})
    assert_close(outputs.features, taps)
    stats = flatten_dict(new["batch_stats"], sep="/")
    assert_close(stats, network.stats if train else network.old)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kernel", "groups", "stride", "border"),
    [
        ((3, 3, 1, 6), 6, 1, 1),
        ((3, 3, 1, 6), 6, 2, 1),
        ((2, 3, 1, 6), 6, 2, 0),
        ((1, 1, 2, 9), 3, 1, 0),
        ((3, 3, 1, 12), 6, 2, 1),
    ],
)
def test_groups_unrolled_equal_xlas_and_so_do_gradients(
    kernel, groups, stride, border, rng
):
    x, kernel = rng.normal(size=(2, 7, 6, 6)), rng.normal(size=kernel)
    settings = {
        "dimension_numbers": jax.lax.conv_dimension_numbers(
            x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC")
        ),
        "feature_group_count": groups,
    }

    def run(convolution):
        def forward(x, kernel):
            sides = ((border, border), (border, border))
            return convolution(x, kernel, (stride, stride), sides, **settings)

        out, back = jax.vjp(forward, x, kernel)
        return out, *back(jnp.cos(out))

    found, expected = run(grouped.convolve), run(jax.lax.conv_general_dilated)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_channels_are_shuffled_across_the_groups():
    x = jnp.arange(6.0).reshape(1, 1, 1, 6)

    for groups, order in (
        (1, range(6)),
        (2, (0, 3, 1, 4, 2, 5)),
        (3, (0, 2, 4, 1, 3, 5)),
    ):
        shuffled = channel_shuffle(x, groups)
        np.testing.assert_array_equal(shuffled[0, 0, 0], list(order))


@pytest.mark.parametrize(
    ("name", "classes", "shape", "count"),
    [
        ("mobilenetv2-0.5", 100, CIFAR, 812_836),
        ("mobilenetv2-1.0", 100, CIFAR, 2_353_060),
        ("shufflenetv1", 100, CIFAR, 949_258),
        ("shufflenetv2", 100, CIFAR, 1_355_528),
        ("bottleneck_resnet-50", 100, CIFAR, 23_705_252),
        ("imagenet_resnet-50", 1000, IMAGENET, 25_557_032),
        ("resnet-32x4", 100, CIFAR, 7_433_860),
        ("vgg-16", 100, CIFAR, 14_774_436),
        ("vgg-19", 100, CIFAR, 20_086_692),
    ],
)
def test_parameter_counts_are_the_published_ones(name, classes, shape, count):
    params = models.shapes(name, classes, shape)["params"]

    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("name", "maps", "pooled"),
    [
        (
            "mobilenetv2-0.5",
            [(16, 16), (16, 12), (8, 16), (4, 48), (2, 160)],
            1280,
        ),
        ("shufflenetv1", [(32, 24), (16, 240), (8, 480), (4, 960)], 960),
        ("shufflenetv2", [(32, 24), (16, 116), (8, 232), (4, 464)], 1024),
        (
            "bottleneck_resnet-50",
            [(32, 64), (32, 256), (16, 512), (8, 1024), (4, 2048)],
            2048,
        ),
    ],
)
def test_features_have_the_sources_shapes(name, maps, pooled):
    model = models.create(name, 100)
    images = jax.ShapeDtypeStruct((5, *CIFAR), jnp.float32)
    apply = functools.partial(model.apply, train=False)
    found = jax.eval_shape(apply, models.shapes(name, 100, CIFAR), images)

    sides = [(5, side, side, channels) for side, channels in maps]
    expected = {"stem": sides[0], "pooled": (5, pooled)}
    for stage, shape in enumerate(sides[1:], 1):
        expected |= {f"stage{stage}": shape, f"stage{stage}_pre": shape}
    assert found.logits.shape == (5, 100)
    assert {k: v.shape for k, v in found.features.items()} == expected


@pytest.mark.parametrize("name", list(TINY)[:4])
def test_starts_are_the_sources(name):
    # One stage is enough, and compiles in half the time.
    model = TINY[name]
    if name == "bottleneck_resnet":
        model = model.clone(blocks=model.blocks[:1])
    else:
        model = model.clone(stages=model.stages[-1:])
    init = jax.jit(
        functools.partial(model.init, train=False),
        compiler_options=backend.start_options(),
    )
    variables = init(jax.random.key(0), jnp.zeros((1, *SMALL)))
    leaves = flatten_dict(variables["params"], sep="/")
    head = leaves.pop("head/bias")
    if name == "mobilenetv2":
        np.testing.assert_array_equal(head, 0)
    else:
        assert 0 < abs(head).max() <= 1 / np.sqrt(len(leaves["head/kernel"]))
    for path, leaf in leaves.items():
        if not path.endswith("/kernel"):
            neutral = {"scale": 1, "bias": 0}[path.split("/")[-1]]
            np.testing.assert_array_equal(leaf, neutral, err_msg=path)
            continue
        # PyTorch's fans: the outputs of all groups, the inputs of one.
        fan_out = np.prod(leaf.shape) / leaf.shape[-2]
        fan_in = np.prod(leaf.shape[:-1])
        uniform = name.startswith("shufflenet") or (
            path == "head/kernel" and name != "mobilenetv2"
        )
        std = np.sqrt(1 / (3 * fan_in)) if uniform else np.sqrt(2 / fan_out)
        if path == "head/kernel" and name == "mobilenetv2":
            std = 0.01
        if uniform:
            assert abs(leaf).max() <= 1 / np.sqrt(fan_in), path
        assert abs(np.std(leaf) / std - 1) < 5 / np.sqrt(2 * leaf.size), path
        assert abs(np.mean(leaf)) < 5 * std / np.sqrt(leaf.size), path


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("mobilenetv2", "mobilenetv2-0.5, mobilenetv2-1.0"),
        ("mobilenetv2-0.50", "mobilenetv2-0.5, mobilenetv2-1.0"),
        ("shufflenetv1-1.0", "choices: shufflenetv1"),
        ("shufflenetv2-0.5", "choices: shufflenetv2"),
        ("bottleneck_resnet-56", "choices: bottleneck_resnet-50"),
        ("imagenet_resnet-101", "imagenet_resnet-34, imagenet_resnet-50"),
        ("resnet-51", "cifar_resnet-DEPTH"),
    ],
)
def test_unknown_names_are_told_with_the_choices(name, choices):
    with pytest.raises(UserError) as error:
        models.create(name, 10)

    assert repr(name) in str(error.value)
    assert choices in str(error.value)
