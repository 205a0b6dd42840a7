"""Disks that are full, have no inodes left, or break, while a run goes on."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.campaign.kinds import READ_ONLY, Kind
from tests.campaign.outcome import Outcome, Trials, judge
from tests.campaign.shim import Fault

FAULTS = {
    Fault.FULL: "disk full",
    Fault.QUOTA: "quota used up",
    Fault.INODES: "no inodes",
    Fault.BROKEN: "I/O errors",
    Fault.ONCE: "one I/O error",
    Fault.UNREADABLE: "I/O errors when reading",
}


def trials(
    kinds: Sequence[Kind], number: int, rng: random.Random, folder: Path, found: Trials
) -> None:
    """Tries a number of faults: see `kills.trials`.

    The run must say in one line what is wrong, and come to its end once all is well.
    """
    faults = list(FAULTS)
    for trial in range(number):
        kind = kinds[trial // len(faults) % len(kinds)]
        fault = faults[trial % len(faults)]
        workdir = folder / "starved"
        shutil.rmtree(workdir, ignore_errors=True)
        most = kind.reads if fault is Fault.UNREADABLE else kind.changes
        at = rng.randint(1, max(1, most))
        hit = kind.commands.run(kind.to(workdir), (workdir, fault, at), **READ_ONLY)
        about = {"kind": kind.name, "at": at, "code": hit.code, "err": hit.err[-2000:]}
        if hit.code == 0:
            outcome, said = judge(kind, workdir, hit)
        elif hit.told:
            # What was said is mended by then: the same command must come to its end.
            outcome, said = judge(kind, workdir, kind.commands.run(kind.to(workdir)))
            outcome = Outcome.TOLD if outcome is Outcome.EQUAL else outcome
        else:
            outcome, said = Outcome.TRACEBACK, ""
        found.add(FAULTS[fault], outcome, said=said, **about)
