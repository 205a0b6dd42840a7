"""Networks imported from PyTorch compute what they do there."""

import copy
import functools

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch, of the extra 'torch', is not installed")

import torch
import torch_compact as compact
import torch_nets as nets

from kdjax import models
from kdjax.export import tensors as export
from kdjax.export.deployed import Deployed
from kdjax.models import import_torch
from kdjax.models.import_torch import LAYOUTS
from kdjax.models.import_torch.fit import guesses
from kdjax.models.import_torch.mapping import table
from kdjax.runtime import backend


def randomised(network, seed=0):
    """Gives BatchNorms scales, shifts and statistics that are not the initial ones."""
    draw = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            shape = module.weight.shape
            module.weight.data = 0.5 + torch.rand(shape, generator=draw)
            module.bias.data = 0.2 * torch.randn(shape, generator=draw)
            module.running_mean = 0.3 * torch.randn(shape, generator=draw)
            module.running_var = 0.5 + 1.5 * torch.rand(shape, generator=draw)
    return network


def resnet(blocks, **options):
    return functools.partial(
        nets.ResNet, [blocks] * 3, [16, 32, 64], **{"classes": 10, **options}
    )


def four_stages(blocks, classes=10, **options):
    widths = [64, 128, 256, 512]
    return functools.partial(nets.ResNet, blocks, widths, classes, **options)


CASES = {
    "resnet-8": (resnet(1), 16),
    "resnet-14 kuangliu": (resnet(2, naming="kuangliu"), 16),
    "padded_resnet-14 akamaster": (resnet(2, naming="akamaster"), 16),
    "resnet-8x4": (
        functools.partial(nets.ResNet, [1] * 3, [64, 128, 256], 10, stem=32),
        16,
    ),
    "wrn-16-1": (functools.partial(nets.WRN, 16, 1, 10), 16),
    "wrn-10-2": (functools.partial(nets.WRN, 10, 2, 10), 16),
    "imagenet_resnet-18": (four_stages((2, 2, 2, 2), large=True), 64),
    "bottleneck_resnet-50 kuangliu": (
        four_stages((3, 4, 6, 3), bottleneck=True, naming="kuangliu"),
        16,
    ),
    "cifar_resnet-18 kuangliu": (four_stages((2, 2, 2, 2), naming="kuangliu"), 16),
    "vgg-8": (functools.partial(compact.VGG, (1, 1, 1, 1, 1), 10), 16),
    "plain-3": (functools.partial(compact.Plain, "C16 C16 P C32 P", 10, 16), 16),
    "plain-7": (
        functools.partial(
            compact.Plain, "C16 C16 P C32 C32 P C64 C64 P C128 P F64", 10
        ),
        32,
    ),
    "mobilenetv2-0.5": (functools.partial(compact.MobileNetV2, 0.5, 10), 32),
    "shufflenetv1": (functools.partial(compact.ShuffleNetV1, 10), 32),
    "shufflenetv2": (functools.partial(compact.ShuffleNetV2, 10), 32),
}


def saved(network, path):
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def _grouped_convolutions_compile_fast(monkeypatch):
    """`test_mobile` shows that both ways to compute them agree."""
    monkeypatch.setattr(backend, "unroll_groups", lambda: False)


def tensors(network):
    """Returns the state dict without the counters of batches."""
    state = network.state_dict()
    return {key: state[key] for key in state if not key.endswith("_tracked")}


def apply(name, variables, images, train):
    module = models.create(name, 10)
    mutable = ["batch_stats"] if train else []
    outputs, _ = jax.jit(
        lambda variables, images: module.apply(
            variables, images, train=train, mutable=mutable
        )
    )(variables, images)
    return outputs


def imported(case, tmp_path):
    """Returns a network with its images, and the variables imported from it."""
    make, side = CASES[case]
    torch.manual_seed(1)
    network, shape = randomised(make()), (side, side, 3)
    path = saved(network, tmp_path / "net.pth")
    variables = import_torch.load(path, case.split()[0], 10, shape)
    images = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    return network, torch.from_numpy(images.transpose(0, 3, 1, 2)), images, variables


@pytest.mark.parametrize("case", CASES)
def test_logits_and_features_are_pytorchs(case, tmp_path):
    network, inputs, images, variables = imported(case, tmp_path)
    with torch.no_grad():
        logits, features = network.eval()(inputs)
    outputs = apply(case.split()[0], variables, images, train=False)
    features = {
        name: (maps.permute(0, 2, 3, 1) if maps.ndim == 4 else maps).numpy()
        for name, maps in features.items()
    }
    assert features.keys() == outputs.features.keys()
    for found, expected in (
        (outputs.logits, logits.numpy()),
        *((outputs.features[name], features[name]) for name in features),
    ):
        assert found.shape == expected.shape
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("case", CASES)
def test_logits_of_training_mode_are_pytorchs(case, tmp_path):
    network, inputs, images, variables = imported(case, tmp_path)
    exact = copy.deepcopy(network).double().train()
    with torch.no_grad():
        expected = exact(inputs.double())[0].numpy()
        rounded = network.train()(inputs)[0].numpy()
    logits = apply(case.split()[0], variables, images, train=True).logits
    scale = np.abs(expected).max()
    # Statistics of batches multiply rounding: in PyTorch's own float32 up to 7e-5.
    theirs = np.abs(rounded - expected).max() / scale
    assert np.abs(logits - expected).max() / scale <= max(1e-5, 2 * theirs)
    assert theirs < 1e-4


PLAIN = {
    ("plain-2", 10): "C16 P C16 P",
    ("plain-4", 10): "C16 C16 P C32 C32 P",
    ("plain-8", 10): "C16 C16 P C32 C32 P C64 C64 P C128 C128 P F64",
    ("plain-10", 10): "C32 C32 P C64 C64 P C128 C128 P C256 C256 C256 C256 P F128",
    ("plain-2", 100): "C32 P C32 P",
    ("plain-6", 100): "C32 C32 P C64 C64 P C128 C128",
    ("plain-10", 100): "C32 C32 P C64 C64 P C128 C128 P C256 C256 C256 C256 P F512",
}
SIZES = {
    **{(f"resnet-{6 * n + 2}", 100): resnet(n, classes=100) for n in (1, 3, 5, 9, 18)},
    ("resnet-32x4", 100): functools.partial(
        nets.ResNet, [5] * 3, [64, 128, 256], 100, stem=32
    ),
    ("wrn-40-1", 10): functools.partial(nets.WRN, 40, 1, 10),
    ("wrn-40-2", 100): functools.partial(nets.WRN, 40, 2, 100),
    ("wrn-28-10", 10): functools.partial(nets.WRN, 28, 10, 10),
    ("vgg-11", 7): functools.partial(compact.VGG, (1, 1, 2, 2, 2), 7),
    ("vgg-13", 100): functools.partial(compact.VGG, (2, 2, 2, 2, 2), 100),
    ("vgg-16", 100): functools.partial(compact.VGG, (2, 2, 3, 3, 3), 100),
    ("vgg-19", 100): functools.partial(compact.VGG, (2, 2, 4, 4, 4), 100),
    **{
        (name, classes): functools.partial(compact.Plain, words, classes)
        for (name, classes), words in PLAIN.items()
    },
    ("mobilenetv2-1.0", 100): functools.partial(compact.MobileNetV2, 1.0, 100),
    ("imagenet_resnet-34", 1000): four_stages((3, 4, 6, 3), 1000, large=True),
    ("imagenet_resnet-50", 1000): four_stages(
        (3, 4, 6, 3), 1000, large=True, bottleneck=True
    ),
    **{
        (f"padded_resnet-{6 * n + 2}", 10): resnet(n, naming="akamaster")
        for n in (3, 5, 18)
    },
    ("cifar_resnet-18", 10): four_stages((2, 2, 2, 2), naming="kuangliu"),
    ("cifar_resnet-18", 7): four_stages((2, 2, 2, 2), 7),
    ("cifar_resnet-34", 100): four_stages((3, 4, 6, 3), 100, naming="weiaicunzai"),
    ("bottleneck_resnet-50", 100): four_stages(
        (3, 4, 6, 3), 100, bottleneck=True, naming="weiaicunzai"
    ),
}


@pytest.mark.parametrize(("name", "classes"), SIZES)
def test_a_network_is_told_by_its_shapes(name, classes):
    with torch.device("meta"):
        network = SIZES[name, classes]()
    shapes = {key: tuple(value.shape) for key, value in tensors(network).items()}
    (found,) = guesses(shapes).values()
    side = 224 if name.startswith("imagenet") else 32
    assert found == import_torch.Guess(name, classes, (side, side, 3))


@pytest.mark.parametrize(
    ("case", "layout", "shape"),
    [
        ("resnet-8", "RepDistiller", (32, 32, 3)),
        ("plain-7", "TAKD and DGKD", (32, 32, 3)),
        ("plain-3", "TAKD and DGKD", (16, 16, 3)),
        ("shufflenetv2", "RepDistiller", (32, 32, 3)),
        ("padded_resnet-14 akamaster", "akamaster", (32, 32, 3)),
        ("cifar_resnet-18 kuangliu", "kuangliu", (32, 32, 3)),
    ],
)
def test_a_network_goes_back_to_pytorch(case, layout, shape, tmp_path):
    network, name = randomised(CASES[case][0]()), case.split()[0]
    path = saved(network, tmp_path / "net.pth")
    variables = import_torch.load(path, name, 10, shape)
    state = {
        key: torch.from_numpy(array)
        for key, array in import_torch.to_state_dict(
            variables, name, layout, shape
        ).items()
    }
    other = CASES[case][0]()
    other.load_state_dict(state, strict=True)
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize("case", CASES)
def test_exported_files_hold_what_was_imported(case, tmp_path):
    make, side = CASES[case]
    network, name, shape = randomised(make()), case.split()[0], (side, side, 3)
    path, out = saved(network, tmp_path / "net.pth"), tmp_path / "out.pth"
    variables = import_torch.load(path, name, 10, shape)
    deployed = Deployed(name, 10, shape, variables, (0.5,) * 3, (0.25,) * 3)
    own = export.layout_of(name, shape, 10, [str(path)])
    family = name.split("-")[0]
    names = [layout.name for layout in LAYOUTS if layout.family == family]
    assert own in names
    for layout in names:
        export.write_torch(deployed, name, out, layout)
        state = torch.load(out, weights_only=True)
        if layout == own:
            assert state.keys() == tensors(network).keys()
            for key, value in tensors(network).items():
                assert torch.equal(state[key], value), key
        again = import_torch.load(out, name, 10, shape)
        jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_every_layout_is_here():
    families = {case.split("-")[0] for case in CASES}
    assert families == {layout.family for layout in LAYOUTS}


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("bottleneck_resnet-50", (3, 4, 6, 3)), ("cifar_resnet-18", (2, 2, 2, 2))],
)
def test_layouts_name_the_same_tensors(name, blocks):
    paths, bottleneck = [], name.startswith("bottleneck")
    for naming in ("kuangliu", "torchvision", "weiaicunzai"):
        with torch.device("meta"):
            network = four_stages(blocks, bottleneck=bottleneck, naming=naming)()
        shapes = {key: tuple(value.shape) for key, value in tensors(network).items()}
        (layout,) = guesses(shapes)
        rows = table(layout.prefix, name, 10, (32, 32, 3))
        of = {row.key: row.path for row in rows}
        # The modules are made in the same order.
        paths.append([of[key] for key in shapes])
    assert paths[0] == paths[1] == paths[2]
