"""ONNX files compute what the networks compute, in graphs without detours."""

import re
from collections import Counter

import exported
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from kdjax import models
from kdjax.export import onnx as writer
from kdjax.runtime.errors import UserError

# As ResNet-50, in a tenth of the time.
BOTTLENECKS = (
    "kdjax.models.imagenet_resnet:ImageNetResNet"
    "(blocks=(1,1,1,2),bottlenecks=True,small_images=True)"
)
# Name, image's side, nodes beside those of Conv, Gemm, Relu and Add.
FAMILIES = [
    (BOTTLENECKS, 16, {}),
    pytest.param("bottleneck_resnet-50", 16, {}, marks=pytest.mark.slow),
    ("cifar_resnet-18", 16, {}),
    ("imagenet_resnet-18", 64, {"MaxPool": 1}),
    pytest.param("imagenet_resnet-34", 64, {"MaxPool": 1}, marks=pytest.mark.slow),
    pytest.param("imagenet_resnet-50", 64, {"MaxPool": 1}, marks=pytest.mark.slow),
    ("mobilenetv2-0.5", 32, {}),
    ("plain-3", 16, {"MaxPool": 2}),
    ("plain-8", 32, {"MaxPool": 4}),
    ("padded_resnet-8", 32, {"Slice": 2, "Pad": 2}),
    ("resnet-8", 32, {}),
    ("shufflenetv1", 16, {"AveragePool": 3, "Concat": 3}),
    ("shufflenetv2", 16, {"Split": 13, "Concat": 16}),
    ("simkd-2:resnet-8:resnet-8x4", 32, {}),
    ("vgg-8", 16, {"MaxPool": 3}),
    ("wrn-16-1", 32, {"BatchNormalization": 7}),
]


def test_every_family_is_here():
    # Other tests add families of their own.
    own = {
        name
        for name, family in models.MODELS.loaded().items()
        if getattr(family, "__name__", "").startswith("kdjax.models.")
    }
    rows = [getattr(row, "values", row) for row in FAMILIES]
    families = {name.split("-")[0] for name, *_ in rows if ":Image" not in name}
    assert families == own


@pytest.mark.parametrize(("name", "side", "others"), FAMILIES)
def test_families(name, side, others, tmp_path):
    network = exported.deployed(name, (side, side, 3))
    writer.write(network, tmp_path / "model.onnx")
    images = exported.pixels(network.image_shape)
    expected = np.asarray(jax.jit(network.apply(uint8=True))(images))
    assert np.ptp(expected, axis=0).min() > 1e-3 * np.abs(expected).max()
    shown = exported.normalised(images)
    for count in (1, len(images)):
        logits = exported.run_onnx(tmp_path / "model.onnx", shown[:count])
        error = np.abs(logits - expected[:count]).max()
        assert error < 1e-4 * np.abs(expected).max()
    kinds = Counter(
        node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node
    )
    # A shuffle is one Transpose between two Reshapes; there are no others.
    shuffles = {"shufflenetv1": 16, "shufflenetv2": 16}.get(name, 0)
    assert kinds["Reshape"] == 2 * shuffles
    assert shuffles - 1 <= kinds["Transpose"] <= shuffles
    for kind, number in others.items():
        assert kinds.pop(kind) == number
    means = {"GlobalAveragePool", "Flatten"}
    known = {"Conv", "Gemm", "Relu", "Add", "Reshape", "Transpose", *means}
    assert set(kinds) <= known
    layers = _layers(network.variables["params"])
    activated = layers + kinds["Relu"]
    assert kinds.total() <= 1.5 * (activated if shuffles else layers)


def _layers(params):
    """Returns the number of convolutions, BatchNorms and dense layers."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return sum(path[-1].key in ("kernel", "scale") for path in paths)


@pytest.mark.parametrize("opset", [writer.OLDEST, writer.newest()])
@pytest.mark.parametrize("uint8", [False, True])
def test_versions_and_raw_images(opset, uint8, tmp_path):
    network = exported.deployed("wrn-16-1", (8, 8, 3))
    path = tmp_path / "model.onnx"
    writer.write(network, path, uint8=uint8, opset=opset)
    model = onnx.load(path)
    assert model.opset_import[0].version == opset
    onnx.checker.check_model(model, full_check=True)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert not shape[0].dim_value
    images = exported.pixels(network.image_shape)
    expected = network.apply(uint8=True)(images)
    shown = images if uint8 else exported.normalised(images)
    logits = exported.run_onnx(path, shown)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_grey_images(tmp_path):
    network = exported.deployed("resnet-8", (8, 8, 1))
    writer.write(network, tmp_path / "model.onnx", uint8=True)
    images = exported.pixels(network.image_shape)
    logits = exported.run_onnx(tmp_path / "model.onnx", images)
    expected = network.apply(uint8=True)(images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [writer.OLDEST - 1, writer.newest() + 1])
def test_unknown_versions(opset, tmp_path):
    network = exported.deployed("plain-2", (8, 8, 3))
    choices = f"opset {opset}; choices: {writer.OLDEST} to {writer.newest()}"
    with pytest.raises(UserError, match=re.escape(choices)):
        writer.write(network, tmp_path / "model.onnx", opset=opset)
    assert not (tmp_path / "model.onnx").exists()


class Modern(nn.Module):
    """What newer networks have: SE, LayerNorm, GELU, swish, attention, tokens."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (4, 4), (4, 4), name="patches")(x)
        x = nn.LayerNorm()(x)
        x = x + nn.gelu(nn.Dense(8)(x), approximate=False)
        x = nn.Conv(8, (3, 3), feature_group_count=8, kernel_dilation=2)(x)
        x = nn.BatchNorm(use_running_average=not train)(nn.hard_swish(x))
        gate = nn.sigmoid(nn.Dense(8)(nn.silu(x.mean((1, 2), keepdims=True))))
        x = (x * gate).reshape(len(x), -1, 8)
        token = self.param("token", nn.initializers.normal(1), (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 8)), x], 1)
        x = x + self.param("places", nn.initializers.normal(1), (1, x.shape[1], 8))
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = nn.leaky_relu(nn.GroupNorm(2)(x))
        return nn.Dense(5)(x[:, 0])


class Layer(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.BatchNorm(not self.train)(nn.Conv(3, (3, 3))(x))), None


class Scanned(nn.Module):
    """Equal layers as a loop over their weights."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        repeat = nn.scan(
            Layer,
            {"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = repeat(train)(x, None)
        return nn.Dense(5)(nn.elu(nn.remat(nn.Conv)(4, (2, 2), 2)(x)).max((1, 2)))


@pytest.mark.parametrize("opset", [writer.OLDEST, writer.newest()])
@pytest.mark.parametrize("network", [Modern(), Scanned()], ids=["modern", "scanned"])
def test_modules_of_ones_own(network, opset, tmp_path):
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = network.init(jax.random.key(0), images)
    variables = exported.lively(variables, network.apply, images)
    path = tmp_path / "model.onnx"
    exported.write_function(
        lambda images: network.apply(variables, images), (16, 16, 3), path, opset
    )
    expected = jax.jit(network.apply)(variables, images)
    for count in (1, 4):
        shown = np.asarray(images[:count]).transpose(0, 3, 1, 2)
        logits = exported.run_onnx(path, shown)
        np.testing.assert_allclose(logits, expected[:count], rtol=1e-4, atol=2e-5)


def _transposed(x):
    kernel = jnp.ones((2, 2, 3, 3))
    return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME").mean((1, 2))


REFUSED = {
    "conv_general_dilated": _transposed,
    "sort": lambda x: jnp.sort(x.reshape(len(x), -1)),
    "while": lambda x: jax.lax.while_loop(
        lambda x: x.sum() < 0, lambda x: x + 1, x
    ).sum((1, 2)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_named(name, tmp_path):
    with pytest.raises(UserError) as caught:
        exported.write_function(REFUSED[name], (4, 4, 3), tmp_path / "model.onnx")
    message = str(caught.value)
    assert f"operation {name!r} ({__file__}" in message
    assert "stablehlo" in message
    assert "\n" not in message
    assert len(message) <= 300


A, B = 0.3 + jnp.arange(48.0).reshape(1, 4, 4, 3) / 48, jnp.array([[[0.5, -1.0, 2.0]]])
# One function for every operation that is written, of positive images 4x4x3.
OPERATIONS = {
    "abs": lambda x: jnp.abs(x - 0.5),
    "add": lambda x: x + x,
    "affine": lambda x: x[:, 0] * B + B,
    "and": lambda x: ((x > 0.3) & (x < 0.6)).astype(jnp.float32),
    "argmax": lambda x: jnp.argmax(x, 3).astype(jnp.float32),
    "argmin": lambda x: jnp.argmin(x, 1).astype(jnp.float32),
    "average_pool": lambda x: nn.avg_pool(x, (2, 3), (1, 2), "SAME"),
    "broadcast_in_dim": lambda x: jnp.concatenate(
        [x, jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)], 3
    ),
    "ceil": lambda x: jnp.ceil(3 * x),
    "clamp": lambda x: jax.lax.clamp(0.2, x, 0.6),
    "concatenate": lambda x: jnp.concatenate([x, x * x], 1),
    "conv_general_dilated": lambda x: jax.lax.conv_general_dilated(
        x,
        jnp.ones((2, 3, 3, 4)),
        (1, 2),
        ((0, 1), (1, 1)),
        rhs_dilation=(1, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "convert_element_type": lambda x: (9 * x).astype(jnp.int32).astype(jnp.float32),
    "cos": jnp.cos,
    "cumsum": lambda x: jnp.cumsum(x, 2),
    "div": lambda x: x / (x + jnp.flip(x, 1)),
    "dot_general": lambda x: jnp.einsum("nhwc,nhvc->nwv", x, x + 1),
    "dynamic_slice": lambda x: jax.lax.dynamic_slice_in_dim(x, 1, 2, 2),
    "eq": lambda x: (x == x[:, :1]).astype(jnp.float32),
    "erf": jax.lax.erf,
    "erfc": jax.lax.erfc,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "floor": lambda x: jnp.floor(3 * x),
    "gather": lambda x: jnp.take(x, jnp.array([2, 0]), axis=3),
    "ge": lambda x: (x >= x[:, :1]).astype(jnp.float32),
    "gt": lambda x: (x > x[:, :1]).astype(jnp.float32),
    "integer_pow": lambda x: x**3 + x**2,
    "le": lambda x: (x <= x[:, :1]).astype(jnp.float32),
    "log": jnp.log,
    "log1p": jnp.log1p,
    "logistic": jax.nn.sigmoid,
    "lt": lambda x: (x < x[:, :1]).astype(jnp.float32),
    "max": lambda x: jnp.maximum(x, 0.4) + jnp.maximum(x, A) + jax.nn.relu(x - 0.5),
    "mean": lambda x: x.mean((1, 2)) + x.mean((2, 3))[:, 1:] + x.mean(1)[:, 0],
    "min": lambda x: jax.nn.relu6(9 * x - 2) + jnp.minimum(x, 0.5) + jnp.minimum(x, A),
    "mul": lambda x: x * x[:, ::-1],
    "ne": lambda x: (x != x[:, :1]).astype(jnp.float32),
    "neg": lambda x: -x,
    "not": lambda x: (~(x > 0.5)).astype(jnp.float32),
    "or": lambda x: ((x > 0.8) | (x < 0.2)).astype(jnp.float32),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 1)), constant_values=3),
    "pow": lambda x: x**0.7 + x**x,
    "reduce_max": lambda x: x.max((1, 3)),
    "reduce_min": lambda x: x.min(2),
    "reduce_prod": lambda x: x.prod((1, 2)),
    "reduce_sum": lambda x: x.sum((1, 2)) + x.sum(3)[:, 1, 1:],
    "reduce_window_max": lambda x: nn.max_pool(x, (2, 3), (1, 2), "SAME"),
    "reduce_window_sum": lambda x: nn.avg_pool(
        x, (2, 2), (2, 1), "SAME", count_include_pad=False
    ),
    "reshape": lambda x: x.reshape(len(x), 2, -1, 3, 1).swapaxes(1, 3).reshape(-1, 3),
    "rev": lambda x: x[:, ::-1, :, ::-1],
    "rsqrt": jax.lax.rsqrt,
    "select_n": lambda x: jnp.where(x > 0.5, x, 2 * x),
    "sign": lambda x: jnp.sign(x - 0.5),
    "sin": jnp.sin,
    "slice": lambda x: x[:, 1:4:2, :, 1:],
    "split": lambda x: jnp.concatenate(jnp.split(x, 2, 1)[::-1], 2),
    "sqrt": jnp.sqrt,
    "square": jnp.square,
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "sub": lambda x: A - x + (x - x[:, :1]),
    "tanh": jnp.tanh,
    "transpose": lambda x: x.transpose(0, 3, 2, 1),
    "xor": lambda x: ((x > 0.3) ^ (x < 0.6)).astype(jnp.float32),
}


def test_every_operation_is_here():
    assert set(writer.CONVERTERS) == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name, tmp_path):
    from kdjax.export.folding import fold
    from kdjax.export.graph import trace

    function, shape = OPERATIONS[name], (4, 4, 3)
    graph = fold(trace(function, shape, jnp.float32))
    assert name in {operation.name for operation in graph.operations}
    images = np.random.default_rng(0).uniform(0.1, 1, (2, *shape)).astype(np.float32)
    images[:, 1] = images[:, 0]  # for what is equal
    expected = np.asarray(function(jnp.asarray(images)))
    np.testing.assert_allclose(graph(jnp.asarray(images)), expected, 1e-5, 1e-6)
    for opset in (writer.OLDEST, writer.newest()):
        path = tmp_path / f"{opset}.onnx"
        onnx.save(writer.to_model(graph, opset), path)
        found = exported.run_onnx(path, images.transpose(0, 3, 1, 2))
        np.testing.assert_allclose(found, expected, 1e-5, 1e-6)
