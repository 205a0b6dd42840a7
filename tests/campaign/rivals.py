"""Two runs at once in one working folder."""

import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from tests.campaign.commands import Commands
from tests.campaign.kinds import READ_ONLY, Kind
from tests.campaign.outcome import Outcome, Trials, judge


def trials(
    kinds: Sequence[Kind], number: int, rng: random.Random, folder: Path, found: Trials
) -> None:
    """Tries a number of pairs: see `kills.trials`.

    One of the two may refuse with a line; afterwards the command ends as ever.
    """
    others = {
        devices: Commands(folder / "cache", devices=devices)
        for devices in {2 if kind.name == "replicas" else 1 for kind in kinds}
    }
    for trial in range(number):
        kind = kinds[trial % len(kinds)]
        other = others[2 if kind.name == "replicas" else 1]
        workdir = folder / "shared"
        shutil.rmtree(workdir, ignore_errors=True)
        kind.commands.start(kind.to(workdir), **READ_ONLY)
        later = rng.choice((0.0, rng.uniform(0, 3)))
        time.sleep(later)
        other.start(kind.to(workdir), **READ_ONLY)
        both = [kind.commands.wait(), other.wait()]
        fine = [end.told or (end.code == 0 and not end.err) for end in both]
        if all(fine):
            last = kind.commands.run(kind.to(workdir))
            outcome, said = judge(kind, workdir, last)
            if outcome is Outcome.EQUAL and any(end.code for end in both):
                outcome = Outcome.TOLD
        else:
            outcome, said = Outcome.TRACEBACK, ""
        ends = [{"code": end.code, "err": end.err[-2000:]} for end in both]
        found.add(
            f"two at once: {kind.name}", outcome, later=later, ends=ends, said=said
        )
    for commands in others.values():
        commands.close()
