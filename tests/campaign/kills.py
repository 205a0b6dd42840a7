"""Runs that are killed, once or twice, and started again."""

import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from tests.campaign.kinds import READ_ONLY, Kind
from tests.campaign.outcome import Trials, judge
from tests.campaign.shim import Fault


def kill(kind: Kind, workdir: Path, rng: random.Random) -> str:
    """Starts a run and kills it; returns when.

    Three of four are killed while they change their folder, at a change chosen at
    random: every one is part of saving something. The others at any time.
    """
    commands, args = kind.commands, kind.to(workdir)
    if rng.random() < 0.75:
        number = rng.randint(1, kind.changes)
        ended = commands.run(args, (workdir, Fault.KILL, number), **READ_ONLY)
        when = f"at change {number}"
    else:
        seconds = rng.uniform(0, 4)
        commands.start(args, **READ_ONLY)
        time.sleep(seconds)
        commands.kill()
        ended = commands.wait()
        when = f"after {seconds:.3f} s"
    return when if ended.code == -9 else f"{when}: too late ({ended.code})"


def trials(
    kinds: Sequence[Kind], number: int, rng: random.Random, folder: Path, found: Trials
) -> None:
    """Tries a number of runs.

    Args:
        kinds: in turn.
        number: of trials.
        rng: draws the moments.
        folder: for working folders.
        found: where trials are added.
    """
    for trial in range(number):
        kind = kinds[trial % len(kinds)]
        workdir = folder / "killed"
        shutil.rmtree(workdir, ignore_errors=True)
        killed = [kill(kind, workdir, rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        ended = kind.commands.run(kind.to(workdir))
        outcome, said = judge(kind, workdir, ended)
        found.add(f"killed: {kind.name}", outcome, killed=killed, said=said)
