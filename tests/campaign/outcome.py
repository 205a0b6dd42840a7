"""How a trial ended, the table of all trials, and their file."""

import collections
import enum
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

from tests.campaign.commands import Ended
from tests.campaign.kinds import Kind, same, same_but_rounding


class Outcome(enum.StrEnum):
    """How a trial ended, from good to bad."""

    EQUAL = "equal"  # as a run that nothing stopped
    TOLD = "told"  # one line said what is wrong; mended, the run ended equal
    LOST = "lost"  # the same command did not come to an end, advice or not
    WRONG = "wrong"  # it came to another end, without a word
    TRACEBACK = "traceback"  # an error that is no line, or no end in time


class Trials:
    """The trials so far: written to a file as they come."""

    def __init__(self, file: Path):
        """Begins the file anew."""
        self._file = file
        self._trials: list[dict[str, Any]] = []
        self._begin = time.time()

    def add(self, part: str, outcome: Outcome, **about: Any) -> None:
        """Adds a trial.

        Args:
            part: of the campaign.
            outcome: how it ended.
            **about: what it was.
        """
        self._trials.append({"part": part, "outcome": str(outcome), **about})
        seconds = round(time.time() - self._begin)
        text = json.dumps({"seconds": seconds, "trials": self._trials}, indent=1)
        self._file.write_text(text + "\n")

    @property
    def bad(self) -> list[dict[str, Any]]:
        """The trials that should not have ended so."""
        good = (Outcome.EQUAL, Outcome.TOLD)
        return [trial for trial in self._trials if trial["outcome"] not in good]

    def table(self) -> str:
        """Returns the table: a row a part, a column an outcome."""
        found = collections.Counter(
            (trial["part"], trial["outcome"]) for trial in self._trials
        )
        parts = list(dict.fromkeys(trial["part"] for trial in self._trials))
        columns = [str(outcome) for outcome in Outcome]
        rows = [["", "tried", *columns], ["---", *["---:"] * (1 + len(columns))]]
        for part in parts:
            numbers = [found[part, column] for column in columns]
            rows.append([part, str(sum(numbers)), *map(str, numbers)])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def judge(
    kind: Kind, workdir: Path, first: Ended, lines: bool = True
) -> tuple[Outcome, str]:
    """Returns how a run in a working folder comes to an end, and what it said.

    What a line tells to delete is deleted, and the command started again.

    Args:
        kind: of the run.
        workdir: its folder.
        first: how the command ended there.
        lines: whether `metrics.jsonl` must be equal, too.
    """
    ended, said = first, ""
    for _ in range(4):
        if ended.code == 0:
            break
        said = said or ended.err.strip()
        if not ended.told:
            return Outcome.TRACEBACK, ended.err[-2000:]
        if not _follow(ended.err, workdir):
            return Outcome.LOST, said
        ended = kind.commands.run(kind.to(workdir))
    else:
        return Outcome.LOST, said
    if ended.err:
        return Outcome.TRACEBACK, ended.err[-2000:]
    outcome = Outcome.TOLD if said else Outcome.EQUAL
    if same(kind, workdir, lines):
        return outcome, said
    if same_but_rounding(kind, workdir, lines):
        return outcome, f"{said} (but for rounding)".strip()
    return Outcome.WRONG, said


_PATH = r"(/[^\s;,()']+)"


def _follow(line: str, workdir: Path) -> bool:
    """Deletes what a line says is to be deleted; returns whether it says so."""
    if "delete" not in line:
        return False
    after = re.search(rf"delete {_PATH}", line)
    paths = [after[1]] if after else re.findall(_PATH, line)
    inside = [Path(p.rstrip(":.")) for p in paths if p.startswith(str(workdir))]
    if not inside:
        return False
    target = inside[0]
    # 'its folder' is a file's; of a checkpoint, which is a folder, the folder itself.
    if "delete its folder" in line and not (
        target.is_dir() and target.parent.name == "checkpoints"
    ):
        target = target.parent
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    return True
