"""What was measured while a stage trained, wherever it is kept."""

import json
from pathlib import Path
from typing import Any

from kdjax.runtime.errors import UserError
from kdjax.runtime.files import read_checked_json


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of a replica's epochs, the first one first.

    Finished replicas keep them in `result.json`; those that are training, and folders
    whose result holds none, in `metrics.jsonl`.

    Args:
        folder: the replica's.

    Raises:
        UserError: a file is damaged.
    """
    try:
        kept = read_checked_json(folder / "result.json").get("history")
    except FileNotFoundError:
        kept = None
    except ValueError as error:
        raise UserError(f"{folder / 'result.json'} is damaged: {error}") from error
    if kept:
        return kept
    records = []
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break  # it is being written
            raise UserError(
                f"{folder / 'metrics.jsonl'} is damaged in line {number}: {error}"
            ) from error
    return records
