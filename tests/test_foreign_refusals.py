"""Networks of PyTorch that cannot be traced: a line says why."""

import importlib.util

import pytest

pytest.importorskip("torch", reason="torch, of the torch extra, is not installed")

from torch_parts import needs_torchax

from kdjax import models
from kdjax.models.foreign import tracing
from kdjax.runtime.errors import UserError

pytestmark = needs_torchax
CLASSES = 7


MISTAKES = [
    ("torch_own:Asks", "forward wants 'mask' besides images"),
    ("torch_own:Bad('dict')", "returns a dict of 'logits', 'aux'"),
    ("torch_own:Bad('tuple')", r"returns a tuple of \[2, 7\], \[2, 3\]"),
    ("torch_own:Bad('branch')", "branches on values"),
    ("torch_own:Bad('cuda')", "moves tensors to CUDA"),
    ("torch_own:Bad('random')", "draws numbers .* cannot seed"),
    ("torch_own:Bad('generator')", "draws numbers from a torch.Generator of its own"),
    ("torch_own:Bad('to cuda')", "moves tensors to CUDA"),
    ("torch_own:Bad('attribute')", "choices: register_buffer"),
    ("torch_own:Bad('noise')", "random numbers in evaluation mode"),
    ("torch_own:Bad('operation')", "torchax .* has no form of: .*airy_ai"),
    ("torch_own:Net(depth=3)", "refuses its arguments"),
]


@pytest.mark.parametrize(("name", "message"), MISTAKES)
def test_mistakes_are_told_in_a_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        models.shapes(name, CLASSES, (8, 8, 3))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_a_missing_package_is_named(monkeypatch):
    found = importlib.util.find_spec
    tracing.environment.cache_clear()
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "torchax" else found(name, *rest),
    )
    with pytest.raises(UserError, match=r"pip install 'kdjax\[torch\]'"):
        models.shapes("torch_own:Net(width=5)", CLASSES, (8, 8, 3))
