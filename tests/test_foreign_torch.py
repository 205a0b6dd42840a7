"""Networks of PyTorch, traced by torchax: what PyTorch itself computes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("torch", reason="torch, of the torch extra, is not installed")

import torch
import torch_own
from torch_parts import DEIT, nchw, needs_timm, needs_torchax

from kdjax import losses, models
from kdjax.models.foreign import torch as foreign
from kdjax.models.foreign.variables import variables_of

pytestmark = needs_torchax
CLASSES, BATCH = 7, 8
KEY = jax.random.key(3)
NETWORKS = [
    ("torch_own:Net(width=3)", 8, 1e-12),
    ("torch_own:Padded", 8, 1e-12),
    pytest.param(DEIT, 16, 1e-12, marks=needs_timm),
    pytest.param("timm:resnet18", 16, 1e-11, marks=[needs_timm, pytest.mark.slow]),
    pytest.param(
        # Its third step is of values that the second step's rounding has moved.
        *("timm:mobilenetv3_small_050", 32, 1e-6),
        marks=[needs_timm, pytest.mark.slow],
    ),
]


def batch(size):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, size, size, 3))
    return images, np.arange(BATCH) % CLASSES


def start(name, size):
    """A network, its first variables in float64, and the module with the same."""
    network = models.create(name, CLASSES)
    variables = models.init(KEY, name, CLASSES, (size, size, 3), 0, jnp.float32)
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
    return network, variables, module(network, variables)


def module(network, variables):
    made = network.make().double()
    state = network.state_dict(variables)
    made.load_state_dict(
        {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    )
    return made


def apart(network, variables, made):
    """The largest difference of a tensor, over the largest value in it."""
    state = {k: v.numpy() for k, v in made.state_dict().items()}
    arrays = {**variables["params"], **variables["batch_stats"]}
    assert {k for k, v in state.items() if v.dtype == np.float64} == arrays.keys()
    return max(
        float(np.abs(state[k] - arrays[k]).max() / max(np.abs(state[k]).max(), 1e-9))
        for k in arrays
    )


@pytest.fixture
def exact_hardswish(monkeypatch):
    """PyTorch's kernels take 1 / 6 in float32, also for float64."""

    def hardsigmoid(x, inplace=False):
        return torch.nn.functional.relu6(x + 3) / 6

    def hardswish(x, inplace=False):
        return x * hardsigmoid(x)

    monkeypatch.setattr(torch.nn.functional, "hardsigmoid", hardsigmoid)
    monkeypatch.setattr(torch.nn.functional, "hardswish", hardswish)


@pytest.mark.usefixtures("x64", "exact_hardswish")
@pytest.mark.parametrize(("name", "size", "limit"), NETWORKS)
def test_three_steps_are_those_of_pytorch(name, size, limit):
    network, variables, made = start(name, size)
    images, labels = batch(size)
    made.eval()
    theirs = made(nchw(images)).detach().numpy()
    ours = jax.jit(network.apply)(variables, images).logits
    np.testing.assert_allclose(ours, theirs, atol=1e-12 * np.abs(theirs).max())

    rate, momentum = 1e-3, 0.9
    optimiser = torch.optim.SGD(made.parameters(), rate, momentum)
    tx = optax.sgd(rate, momentum)

    @jax.jit
    def step(params, stats, state):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            key = {"dropout": KEY}
            out, new = network.apply(variables, images, True, ["batch_stats"], key)
            losses_ = losses.cross_entropy(out.logits, labels)
            return jnp.mean(losses_), new.get("batch_stats", {})

        grads, stats_ = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), stats_, state

    made.train()
    params, stats = variables["params"], variables["batch_stats"]
    state = tx.init(params)
    for _ in range(3):
        params, stats, state = step(params, stats, state)
        optimiser.zero_grad()
        logits = made(nchw(images))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        optimiser.step()
    after = {"params": params, "batch_stats": stats}
    assert apart(network, after, made) < limit
    assert apart(network, variables, made) > 1e-5  # it has moved at all


@pytest.mark.usefixtures("x64")
def test_a_step_of_kd_is_that_of_pytorch():
    name, size = "torch_own:Net(width=3)", 8
    network, variables, made = start(name, size)
    expert = models.create("torch_own:Padded", CLASSES)
    theirs = models.init(KEY, "torch_own:Padded", CLASSES, (8, 8, 3))
    frozen = module(expert, theirs).eval()
    images, labels = batch(size)

    def loss(params):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        out, new = network.apply(given, images, True, ["batch_stats"])
        target = expert.apply(jax.tree.map(jnp.float64, theirs), images).logits
        kd = losses.kd(out.logits, target, temperature=4.0)
        return jnp.mean(losses.cross_entropy(out.logits, labels) + kd), new

    grads, new = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    made.train()
    logits = made(nchw(images))
    with torch.no_grad():
        target = frozen(nchw(images))
    functions = torch.nn.functional
    kd = 16 * functions.kl_div(
        functions.log_softmax(logits / 4, 1),
        functions.log_softmax(target / 4, 1),
        reduction="batchmean",
        log_target=True,
    )
    (functions.cross_entropy(logits, torch.from_numpy(labels)) + kd).backward()
    for key, value in made.named_parameters():
        np.testing.assert_allclose(grads[key], value.grad, rtol=1e-9, atol=1e-13)
    running = new["batch_stats"]["bn.running_var"]
    np.testing.assert_allclose(running, made.bn.running_var, rtol=1e-12)


LAYERS = {
    "same": torch.nn.Conv2d(4, 6, (3, 4), padding="same", dilation=2, groups=2),
    "strided": torch.nn.Conv2d(4, 4, 3, stride=(2, 1), padding=1, groups=4, bias=False),
    "max": torch.nn.MaxPool2d(3, 2, 1),
    "max up": torch.nn.MaxPool2d(2, 2, ceil_mode=True),
    "average": torch.nn.AvgPool2d(3, 2, 1),
    "average inside": torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "parts": torch.nn.AdaptiveAvgPool2d((3, 2)),
    "overlapping parts": torch.nn.AdaptiveAvgPool2d((4, None)),
    "norm": torch.nn.BatchNorm2d(4, eps=0.1, affine=False),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_are_pytorchs(layer):
    part = torch.nn.Sequential(LAYERS[layer], torch.nn.ReLU()).eval()
    images = np.random.default_rng(0).normal(size=(2, 9, 10, 4)).astype(np.float32)
    theirs = part(nchw(images)).detach().numpy().mean((2, 3))
    whole = torch.nn.Sequential(part, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    network = foreign.TorchNetwork(whole, layer)
    outputs = network.apply(network.init(KEY, images), images)
    np.testing.assert_allclose(outputs.logits, theirs, atol=1e-6)


def test_the_start_is_pytorchs_by_the_seed():
    name = "torch_own:Net"
    first, again, other = (
        models.init(jax.random.key(seed), name, 5, (8, 8, 3)) for seed in (0, 0, 1)
    )
    before = torch.random.get_rng_state()
    assert torch.equal(before, torch.random.get_rng_state())
    weight = "conv.weight"
    np.testing.assert_array_equal(first["params"][weight], again["params"][weight])
    assert np.all(first["params"][weight] != other["params"][weight])
    bound = 1 / np.sqrt(27)  # PyTorch's, of 3 x 3 x 3 inputs
    assert 0.8 * bound < np.abs(first["params"][weight]).max() <= bound
    assert set(first["batch_stats"]) == {"bn.running_mean", "bn.running_var"}


def test_a_module_as_an_object_starts_from_its_values():
    module = torch_own.Net(2, 5)
    name = models.register(module)
    assert name == models.register(module)
    assert name != models.register(torch_own.Net(2, 5))
    for seed in (0, 1):
        found = models.init(jax.random.key(seed), name, 5, (8, 8, 3))["params"]
        theirs = module.conv.weight.detach().numpy()
        np.testing.assert_array_equal(found["conv.weight"], theirs)


def test_dropout_draws_by_the_steps_key():
    name = "torch_own:Net(rate=0.5)"
    network, images = models.create(name, CLASSES), jnp.ones((4, 8, 8, 3))
    variables = models.init(KEY, name, CLASSES, (8, 8, 3))
    assert models.needs_key(name, CLASSES, (8, 8, 3))
    assert not models.needs_key("torch_own:Net", CLASSES, (8, 8, 3))

    @jax.jit
    def train(number):
        key = {"dropout": jax.random.fold_in(KEY, number)}
        return network.apply(variables, images, True, ["batch_stats"], key)[0].logits

    one, again, other = train(1), train(1), train(2)
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


def test_tensors_that_a_module_makes_are_among_its_images():
    name = "torch_own:Makes"
    network = models.create(name, CLASSES)
    variables = models.init(KEY, name, CLASSES, (8, 8, 3))
    made = torch_own.Makes(CLASSES).eval()
    made.load_state_dict(network.state_dict(variables))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    ours = jax.jit(network.apply)(variables, images).logits
    theirs = made(nchw(images)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    # Those that are drawn in training come from the step's key.
    assert models.needs_key(name, CLASSES, (8, 8, 3))


def test_bf16_is_computed_in_bf16():
    name = "torch_own:Padded"
    variables = models.init(KEY, name, CLASSES, (8, 8, 3))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])
    images = jnp.ones((4, 8, 8, 3), jnp.bfloat16)
    outputs, new = models.create(name, CLASSES).apply(
        {**variables, "params": params}, images, True, ["batch_stats"]
    )
    assert outputs.logits.dtype == jnp.bfloat16
    assert new["batch_stats"]["bn1.running_var"].dtype == jnp.float32


def test_a_state_dict_and_back():
    name = "torch_own:Net(width=2)"
    variables = models.init(KEY, name, CLASSES, (8, 8, 3))
    state = models.create(name, CLASSES).state_dict(variables)
    made = torch_own.Net(2, CLASSES)
    made.load_state_dict(state, strict=True)
    for part in ("params", "batch_stats"):
        for key, value in variables_of(made)[part].items():
            np.testing.assert_array_equal(value, variables[part][key])


def test_a_shared_weight_is_one_parameter():
    name = "torch_own:Tied"
    variables = models.init(KEY, name, CLASSES, (8, 8, 3))
    again = models.init(KEY, name, CLASSES, (8, 8, 3))
    np.testing.assert_array_equal(
        variables["params"]["scale"], again["params"]["scale"]
    )
    assert "second.weight" not in variables["params"]
    network = models.create(name, CLASSES)
    made = torch_own.Tied(CLASSES)
    made.load_state_dict(network.state_dict(variables), strict=True)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    ours = network.apply(variables, images).logits
    theirs = made(nchw(images)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_module_keeps_its_mode():
    module = torch_own.Net(2, CLASSES).train()
    module.bn.eval()
    network = foreign.TorchNetwork(module, "net")
    network.apply(network.init(KEY, None), jnp.zeros((2, 8, 8, 3)))
    assert module.training
    assert not module.bn.training
