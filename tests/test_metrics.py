"""Sums of metrics on the devices, and the records of training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdjax.runtime.errors import UserError
from kdjax.train import metrics


def summed(rows, first=0):
    totals = metrics.zeros(jax.tree.map(jnp.asarray, rows[0]))
    for step, row in enumerate(rows, first):
        measured = jax.tree.map(jnp.float32, row)
        totals = jax.jit(metrics.add)(totals, measured, jnp.int32(step))
    return totals


def test_means_are_of_all_steps():
    totals = summed([{"loss": 1.0, "ce": 0.5}, {"loss": 2.0, "ce": -0.5}])

    assert metrics.means(totals, 2) == {"loss": 1.5, "ce": 0.0}
    metrics.check_finite(totals, 2)


def test_empty_sums_are_zero_in_the_metrics_dtype():
    totals = metrics.zeros({"loss": jax.ShapeDtypeStruct((), jnp.float16)})

    assert totals["sums"]["loss"].dtype == jnp.float16
    assert float(totals["sums"]["loss"]) == 0
    metrics.check_finite(totals, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_step_that_is_not_finite_and_its_term_are_told(bad):
    rows = [{"loss": 1.0, "kd": 1.0, "ce": 1.0, "at": 1.0} for _ in range(6)]
    rows[2] |= {"loss": bad, "kd": bad}
    rows[4] |= {"loss": bad, "kd": bad, "at": bad}
    totals = summed(rows, first=20)

    for check in (metrics.check_finite, metrics.means):
        with pytest.raises(UserError, match=r"^kd not finite at step 22 \(epoch 8\)"):
            check(totals, 3)


def test_a_loss_that_alone_is_not_finite_is_told():
    with pytest.raises(UserError, match=r"^loss not finite at step 0 \(epoch 1\)"):
        metrics.means(summed([{"loss": np.nan, "ce": 1.0}]), 1)


def record(epoch):
    return {"epoch": epoch, "train/loss": 1.0 / epoch, "test/accuracy": 0.5}


def lines(folder):
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def scalars(folder, name):
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_records_are_lines_and_tensorboard_scalars(tmp_path):
    with metrics.Writer(tmp_path, []) as writer:
        writer.write(record(1))
        assert lines(tmp_path) == [record(1)]  # at once: a killed run keeps them
        writer.write(record(2))

    assert lines(tmp_path) == [record(1), record(2)]
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert scalars(tmp_path, "test/accuracy") == [(1, 0.5), (2, 0.5)]


def test_a_resumed_run_has_every_epoch_once(tmp_path):
    with metrics.Writer(tmp_path, []) as writer:
        for epoch in (1, 2, 4):  # 4 came after the last checkpoint
            writer.write(record(epoch))
    (tmp_path / "tensorboard" / "stale").touch()

    with metrics.Writer(tmp_path, [record(1), record(2)]) as writer:
        writer.write(record(3))

    assert lines(tmp_path) == [record(1), record(2), record(3)]
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_what_is_not_finite_is_null_in_the_lines(tmp_path):
    with metrics.Writer(tmp_path, []) as writer:
        writer.write({"epoch": 1, "test/loss": np.nan})

    assert lines(tmp_path) == [{"epoch": 1, "test/loss": None}]


def resumed(folder, count):
    """The records up to one, as a resumed stage reads them."""
    with metrics.Writer(folder, []) as writer:
        for epoch in range(1, 6):
            writer.write(record(epoch))
            if epoch == count:
                mark = writer.mark()
    return mark


def test_records_are_read_up_to_a_mark(tmp_path):
    mark = resumed(tmp_path, 3)
    assert metrics.read_records(tmp_path, mark) == [record(i) for i in (1, 2, 3)]
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"epoch": 6, "tr')  # killed while it wrote
    history = metrics.read_records(tmp_path, mark)
    with metrics.Writer(tmp_path, history) as writer:
        assert writer.mark() == mark
        assert lines(tmp_path) == history


def test_lines_that_stay_are_not_written_again(tmp_path):
    mark = resumed(tmp_path, 3)
    file = tmp_path / "metrics.jsonl"
    before = file.stat().st_ino
    with metrics.Writer(tmp_path, metrics.read_records(tmp_path, mark)):
        assert file.stat().st_ino == before
        assert len(lines(tmp_path)) == 3


def test_records_that_are_not_finite_come_back(tmp_path):
    with metrics.Writer(tmp_path, []) as writer:
        writer.write({"epoch": 1, "test/loss": np.inf})
        mark = writer.mark()
    history = metrics.read_records(tmp_path, mark)
    assert np.isnan(history[0]["test/loss"])
    with metrics.Writer(tmp_path, history) as writer:
        assert writer.mark() == mark


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "folder"])
def test_damaged_records_are_told(tmp_path, damage):
    mark, file = resumed(tmp_path, 3), tmp_path / "metrics.jsonl"
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "flip":
        content[40] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:40])
    elif damage == "folder":
        file.mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read: .*delete"):
        metrics.read_records(tmp_path, mark)
