"""Which features a network of PyTorch gives, and in what shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch, of the torch extra, is not installed")

from torch_parts import DEIT, nchw, needs_timm, needs_torchax

from kdjax import models
from kdjax.models.foreign import functional
from kdjax.runtime.errors import UserError

pytestmark = needs_torchax
CLASSES = 7
KEY = jax.random.key(3)


def test_levels_are_maps_by_module_path():
    name = models.with_levels("torch_own:Padded", ("stem", "bn2"))
    network = models.create(name, CLASSES)
    variables = models.init(KEY, name, CLASSES, (8, 8, 3))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    outputs = network.apply(variables, images)
    made = models.torch_network(name, CLASSES).make()
    made.load_state_dict(models.torch_network(name, CLASSES).state_dict(variables))
    theirs = made.stem(nchw(images)).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(outputs.features["stage1"], theirs, atol=1e-5)
    assert outputs.features["stage2"].shape == (2, 4, 4, 8)
    wrong = models.with_levels("torch_own:Padded", ("conv9",))
    with pytest.raises(UserError, match="choices: stem, conv1, bn1, conv2, bn2, fc"):
        models.shapes(wrong, CLASSES, (8, 8, 3))


def test_tokens_become_a_map_besides_the_first():
    tokens = jnp.arange(2 * 10 * 3.0).reshape(2, 10, 3)
    found = functional.as_level(tokens, False, None)
    np.testing.assert_array_equal(found, tokens[:, 1:].reshape(2, 3, 3, 3))
    assert functional.as_level(tokens[:, :9], False, 0).shape == (2, 3, 3, 3)
    assert functional.as_level(tokens[:, :7], False, 0).shape == (2, 7, 3)
    maps = jnp.zeros((2, 3, 4, 5))
    assert functional.as_level(maps, False, None).shape == (2, 4, 5, 3)
    assert functional.as_level(maps, True, None).shape == (2, 3, 4, 5)


def test_what_can_be_a_level_is_listed():
    found = models.parts("torch_own:Padded", CLASSES, (8, 8, 3))
    assert found == ["stem", "conv1", "bn1", "conv2", "bn2", "fc"]


@needs_timm
def test_of_many_levels_near_ones_are_told():
    name = models.with_levels(DEIT, ("blocks.1.atn",))
    with pytest.raises(UserError, match=r"blocks\.1\.attn.* more, which") as caught:
        models.shapes(name, CLASSES, (16, 16, 3))
    assert len(str(caught.value)) <= 300
