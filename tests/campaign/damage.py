"""Working folders of which one file is damaged."""

import itertools
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.campaign.kinds import READ_ONLY, Kind
from tests.campaign.outcome import Trials, judge
from tests.campaign.shim import Fault


def _cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))] if content else b"")


def _zero(path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def _folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "cut": _cut,
    "zeros": _zero,
    "one bit": _flip,
    "deleted": _delete,
    "a folder": _folder,
}


def half(kind: Kind, folder: Path) -> Path:
    """Returns the working folder of a run that was killed on the way."""
    workdir = folder / "half" / kind.name
    shutil.rmtree(workdir, ignore_errors=True)
    fault = (workdir, Fault.KILL, int(0.7 * kind.changes))
    assert kind.commands.run(kind.to(workdir), fault, **READ_ONLY).code == -9
    return workdir


def files(workdir: Path) -> list[str]:
    """Returns the files of a working folder."""
    found = (path for path in workdir.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(workdir)) for path in found)


def chosen(
    folders: dict[str, Path], number: int, rng: random.Random
) -> Iterator[tuple[str, str, str]]:
    """Yields folder, file and damage of some trials, at random.

    No file comes twice before all have come once, and no damage of a file twice; if
    `number` is large enough, all are yielded.
    """
    every = [(name, file) for name, root in folders.items() for file in files(root)]
    rng.shuffle(every)
    orders = [rng.sample(list(DAMAGES), len(DAMAGES)) for _ in every]
    rounds = (
        (*which, order[turn])
        for turn in range(len(DAMAGES))
        for which, order in zip(every, orders, strict=True)
    )
    yield from itertools.islice(rounds, number)


def trials(
    kinds: Sequence[Kind], number: int, rng: random.Random, folder: Path, found: Trials
) -> None:
    """Tries a number of damages: see `kills.trials`."""
    for place, kind in enumerate(kinds):
        folders = {"finished": kind.whole, "half-finished": half(kind, folder)}
        share = number // len(kinds) + (place < number % len(kinds))
        for name, file, damage in chosen(folders, share, rng):
            workdir = folder / "damaged"
            shutil.rmtree(workdir, ignore_errors=True)
            shutil.copytree(folders[name], workdir)
            DAMAGES[damage](workdir / file, rng)
            ended = kind.commands.run(kind.to(workdir))
            lines = not file.endswith("metrics.jsonl")
            outcome, said = judge(kind, workdir, ended, lines)
            about = {"file": file, "damage": damage, "said": said}
            found.add(f"damaged, {name}: {kind.name}", outcome, **about)
