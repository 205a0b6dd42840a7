"""Runs that are killed with -9, in a phase and between, end in the same bits."""

import dataclasses
import signal

import pytest
from command import Command, records

pytestmark = pytest.mark.slow

# 6 steps an epoch; AB's connectors are prepared in one epoch before two for all.
ARG = (
    "crd+ab,dataset=digits,teacher=plain4,student=plain2,"
    "epochs=2,batch_size=32,train_size=200,test_size=64"
)
FEW = "--config.stages.student.crd.negatives=64"
OFTEN = "--config.saving.every_s=0"  # a checkpoint after every step


def test_killed_in_either_phase(tmp_path):
    def command(name: str, *more: str) -> Command:
        args = (f"--config=configs/kd.py:{ARG}", FEW, *more)
        return Command(tmp_path / name, args, tmp_path / "cache")

    straight = command("straight")
    straight.run()
    killed = command("killed", OFTEN)
    for beyond in (1, 8):  # in the first phase, and in the second

        def ready(beyond: int = beyond) -> bool:
            return any(step > beyond for step in killed.saved_steps("student"))

        killed.end_when(ready, signal.SIGKILL, -signal.SIGKILL)
        assert not (killed.folder("student") / "result.json").exists()
        assert killed.saved_steps("student")[0] < 18
    dataclasses.replace(killed, args=straight.args).run()
    assert killed.digests() == straight.digests()
    epochs = [record["epoch"] for record in records(killed.folder("student"))]
    assert epochs == [1, 2, 3]
