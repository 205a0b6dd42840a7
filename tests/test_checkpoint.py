"""Checkpoints keep every bit or say so."""

import contextlib
import gc
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.runtime import parallel
from kdjax.runtime.errors import UserError
from kdjax.train import checkpoint
from kdjax.train.checkpoint import Checkpoints, digest

META = {"history": [{"epoch": 1, "loss": 0.25}], "fingerprint": "0123", "none": None}


pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def abandoned(monkeypatch):
    """Waits for what orbax leaves behind when it fails to read one of many arrays.

    Tensorstore's threads then find the event loop closed, and coroutines are lost.
    """
    monkeypatch.setattr(checkpoint, "_PATIENCE", 0.0)
    yield
    time.sleep(0.05)
    gc.collect()


damaged = pytest.mark.usefixtures("abandoned")


def tree(seed=0):
    """Like a train state: parameters, an optimiser's state, the step, no memory."""
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(rng.normal(size=(40, 30)), jnp.float32)
    special = jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32)
    params = {"student": {"conv": {"kernel": kernel}, "bn": {"scale": special}}}
    half = jnp.asarray(rng.normal(size=5), jnp.bfloat16)
    return {
        "params": params,
        "batch_stats": {"student": {}, "half": half},
        "opt_state": optax.adam(0.1).init(params),
        "step": jnp.int32(7 + seed),
        "memory": {},
    }


def on(devices, tree):
    mesh = parallel.make_mesh(jax.devices()[:devices])
    return jax.device_put(tree, parallel.replicated(mesh))


def shapes(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def save(folder, step=3, value=None, meta=META):
    checkpoints = Checkpoints(folder)
    checkpoints.save(step, tree() if value is None else value, meta)
    checkpoints.close()


def restore(folder, target=None):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(shapes(tree() if target is None else target))
    finally:
        checkpoints.close()


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for new, old in pairs:
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    save(tmp_path)

    found, meta = restore(tmp_path)

    assert_same_bits(found, tree())
    assert meta == META


def test_the_tree_may_change_once_save_has_returned(tmp_path):
    value, checkpoints = tree(), Checkpoints(tmp_path)
    checkpoints.save(3, value, META)
    jax.tree.map(lambda leaf: leaf.delete(), value)  # as a donating step does
    checkpoints.close()

    assert_same_bits(restore(tmp_path)[0], tree())


def test_only_the_latest_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    for step in (1, 2, 10):
        checkpoints.save(step, tree(step), {"step": step})
        assert checkpoints.latest() == step
    checkpoints.close()

    assert [path.name for path in tmp_path.iterdir()] == ["10"]
    found, meta = restore(tmp_path)
    assert_same_bits(found, tree(10))
    assert meta == {"step": 10}


def test_as_many_are_kept_as_asked_for(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 10):
            checkpoints.save(step, tree(step), {"step": step})

    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 10]
        assert checkpoints.restore(shapes(tree()), 2)[1] == {"step": 2}
        checkpoints.drop_after(2)
        assert checkpoints.latest() == 2
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


@pytest.mark.parametrize("step", [2, 3])
def test_what_is_not_beyond_the_latest_is_not_saved(tmp_path, step):
    save(tmp_path, 3)

    save(tmp_path, step, tree(1), {})

    found, meta = restore(tmp_path)
    assert_same_bits(found, tree())
    assert meta == META
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_checkpoint_is_independent_of_devices(tmp_path):
    save(tmp_path, value=on(8, tree()))

    found, _ = restore(tmp_path)

    assert_same_bits(found, tree())
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))


def files(folder):
    """The checkpoint's files, the largest first, without the folder."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    found.sort(key=lambda path: (-path.stat().st_size, path))
    return [path.relative_to(folder) for path in found]


def largest(folder):
    """The largest of the files that hold the arrays."""
    return folder / next(path for path in files(folder) if path.parent.name == "d")


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def assert_told_and_left(folder):
    before = {path: (folder / path).read_bytes() for path in files(folder)}
    with pytest.raises(UserError) as error:
        restore(folder)
    assert str(folder / "3") in str(error.value)
    assert "\n" not in str(error.value)
    assert before == {path: (folder / path).read_bytes() for path in files(folder)}


@damaged
def test_a_flipped_byte_in_the_arrays_is_told(tmp_path):
    save(tmp_path)
    path = largest(tmp_path)

    flip(path, path.stat().st_size // 2)

    assert_told_and_left(tmp_path)


@damaged
def test_a_changed_digit_in_the_json_values_is_told(tmp_path):
    save(tmp_path)
    path = tmp_path / "3" / "meta" / "metadata"

    path.write_text(path.read_text().replace("0.25", "0.35"))

    assert_told_and_left(tmp_path)


@damaged
def test_a_flipped_byte_anywhere_is_told_or_harmless(tmp_path):
    save(tmp_path)
    for path in files(tmp_path):
        path = tmp_path / path
        content = path.read_bytes()
        for position in {0, len(content) // 3, len(content) - 1}:
            flip(path, position)
            with contextlib.suppress(UserError):
                found, meta = restore(tmp_path)
                assert_same_bits(found, tree())
                assert meta == META
            path.write_bytes(content)


@damaged
@pytest.mark.parametrize("length", [0, 100])
def test_truncated_arrays_are_told(tmp_path, length):
    save(tmp_path)

    os.truncate(largest(tmp_path), length)

    assert_told_and_left(tmp_path)


@damaged
@pytest.mark.parametrize("length", [0, 100])
def test_a_truncated_file_is_told_or_harmless(tmp_path, length):
    """Orbax leaves index nodes that nothing leads to, more of them under load."""
    save(tmp_path)
    for path in files(tmp_path):
        path = tmp_path / path
        content = path.read_bytes()
        path.write_bytes(content[:length])
        with contextlib.suppress(UserError):
            restored, meta = restore(tmp_path)
            assert_same_bits(restored, tree())
            assert meta == META
        path.write_bytes(content)


@damaged
def test_a_missing_file_is_told(tmp_path):
    save(tmp_path)
    (tmp_path / "3" / "meta" / "metadata").unlink()

    assert_told_and_left(tmp_path)


@damaged
@pytest.mark.parametrize("change", ["shape", "missing", "more"])
def test_another_networks_checkpoint_is_told(tmp_path, change):
    save(tmp_path)
    target = tree()
    convolution = target["params"]["student"]["conv"]
    if change == "shape":
        convolution["kernel"] = jnp.zeros((40, 31))
    elif change == "missing":
        del convolution["kernel"]
    else:
        convolution["bias"] = jnp.zeros(30)

    with pytest.raises(UserError) as error:
        restore(tmp_path, target)

    assert str(tmp_path / "3") in str(error.value)


def test_a_save_that_was_killed_is_passed_over(tmp_path):
    save(tmp_path)
    unfinished = tmp_path / "9.orbax-checkpoint-tmp"
    (unfinished / "tree").mkdir(parents=True)
    (unfinished / "tree" / "manifest.ocdbt").write_bytes(b"half")

    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() == 3
    assert_same_bits(checkpoints.restore(shapes(tree()))[0], tree())
    checkpoints.save(9, tree(9), {})
    checkpoints.close()

    assert_same_bits(restore(tmp_path)[0], tree(9))


def test_a_digest_tells_bits_dtype_shape_and_name_apart():
    value = np.arange(6, dtype=np.float32)
    next_up = value.copy()
    next_up[3] = np.nextafter(next_up[3], 9)
    others = [
        {"a": value},
        {"a": next_up},
        {"a": np.where(value == 0, np.float32(-0.0), value)},
        {"a": value.view(np.int32)},
        {"a": value.reshape(2, 3)},
        {"a": value.reshape(3, 2)},
        {"b": value},
        {"a": {"a": value}},
        [value],
        {"a": value, "b": value[:0]},
        {"a": value[:3], "b": value[3:]},
    ]

    assert len({digest(other) for other in others}) == len(others)
    assert digest({"a": jnp.asarray(value)}) == digest({"a": value.copy()})
    assert len(digest({})) == 16
