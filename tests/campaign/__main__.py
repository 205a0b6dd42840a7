"""`python -m tests.campaign`: the long form, on its table and in its file."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.campaign import damage, disks, fuzz, kills, rivals, shim
from tests.campaign.kinds import KINDS, make_all
from tests.campaign.outcome import Trials

PARTS = {
    "kills": kills.trials,
    "damage": damage.trials,
    "disks": disks.trials,
    "rivals": rivals.trials,
}
NUMBERS = {"kills": 200, "damage": 1000, "disks": 120, "rivals": 40, "fuzz": 5000}


def main() -> int:
    """Runs the campaign; returns 1 if a trial ended as none should."""
    parser = argparse.ArgumentParser(description=__doc__)
    for part, number in NUMBERS.items():
        parser.add_argument(f"--{part}", type=int, default=number)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("campaign.json"))
    options = parser.parse_args()
    if shim.library() is None:
        print("a C compiler is needed: install gcc", file=sys.stderr)
        return 2
    found = Trials(options.results)
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        folder = Path(name)
        numbers = {part: getattr(options, part) for part in NUMBERS}
        if any(numbers[part] for part in PARTS):
            kinds = make_all(options.kinds.split(","), folder)
            for part, trials in PARTS.items():
                # A generator each: the number of one changes no other.
                rng = random.Random(f"{options.seed} {part}")
                trials(kinds, numbers[part], rng, folder, found)
                print(f"{part} done\n{found.table()}", flush=True)
            for kind in kinds:
                kind.commands.close()
        fuzz.trials(numbers["fuzz"], options.seed, folder, found)
    print(found.table())
    return 1 if found.bad else 0


if __name__ == "__main__":
    sys.exit(main())
