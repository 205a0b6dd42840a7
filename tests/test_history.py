"""The records of a long training: what a save costs does not depend on their number."""

import contextlib
import json

import numpy as np
import pytest
import tiny

from kdjax.runtime.errors import UserError
from kdjax.runtime.signals import Interrupted
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.replica import Replica

TREE = {"step": np.int32(0)}


def replica(folder):
    folder.mkdir(exist_ok=True)
    return Replica(label="r", seed=0, folder=folder, fingerprint="0123", frozen={})


def record(epoch):
    return {"epoch": epoch, "train/loss": 1 / epoch, "test/accuracy/student": 0.5}


def saved_bytes(one):
    """The bytes of the newest checkpoint's metadata, once it is on disk."""
    one._checkpoints._manager.wait_until_finished()
    (meta,) = one.folder.glob(f"checkpoints/{one.saved()[-1]}/meta/metadata")
    return meta.stat().st_size


def train(folder, epochs, saves):
    """Adds epochs, and returns the bytes of the saves after some of them."""
    found = []
    with contextlib.closing(replica(folder)) as one:
        if one.saved():
            one.restore(one.saved()[-1], TREE)
        one.begin()
        for epoch in range(len(one.history) + 1, epochs + 1):
            one.add(record(epoch), None, None)
            if epoch in saves:
                one.save(epoch, TREE, 1.0)
                found.append(saved_bytes(one))
    return found


def test_a_late_save_is_as_small_as_an_early_one(tmp_path):
    early, late = train(tmp_path, 300, (100, 300))
    assert early == late < 500


def test_the_records_of_a_resumed_replica_are_those_of_its_checkpoint(tmp_path):
    train(tmp_path, 7, (2, 5))
    with contextlib.closing(replica(tmp_path)) as one:
        one.restore(5, TREE)
        assert one.history == [record(i) for i in range(1, 6)]
    train(tmp_path, 8, ())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 9))


def test_checkpoints_of_earlier_versions_hold_the_records_themselves(tmp_path):
    history = [record(1), record(2)]
    with Checkpoints(tmp_path / "checkpoints") as keeper:
        meta = {"fingerprint": "0123", "history": history, "seconds": 1.0}
        keeper.save(2, TREE, meta)
    (tmp_path / "metrics.jsonl").write_text("of another form\n")
    assert train(tmp_path, 4, (4,))[0] < 500
    with contextlib.closing(replica(tmp_path)) as one:
        one.restore(4, TREE)
        assert one.history == [record(i) for i in range(1, 5)]


def test_nothing_is_dropped_where_the_records_are_damaged(tmp_path):
    train(tmp_path, 6, (2, 5))
    (tmp_path / "metrics.jsonl").write_text("")
    with contextlib.closing(replica(tmp_path)) as one:
        with pytest.raises(UserError, match=r"its first 2 lines are not what"):
            one.restore(2, TREE)
        assert one.saved() == [2, 5]


@pytest.mark.usefixtures("x64")
def test_records_written_after_the_last_checkpoint_are_made_again(tmp_path):
    """As if killed: epochs were over that no checkpoint knows."""
    prog = tiny.program()
    whole = tiny.training(prog, tmp_path / "whole").run()
    with pytest.raises(Interrupted):
        tiny.training(
            prog, tmp_path, interrupt=tiny.InterruptAfter(15, 2), every_s=1e9
        ).run()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "step": 6}\n{"ep')
    resumed = tiny.training(prog, tmp_path).run()
    assert resumed["digest"] == whole["digest"]
    assert [record["epoch"] for record in resumed["history"]] == [1, 2]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed["history"]
