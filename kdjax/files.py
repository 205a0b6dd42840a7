"""Files: small ones written whole or not at all, and the cache's folder."""

import json
import os
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Returns the user's folder for what can be made again: $KDJAX_CACHE, or XDG's."""
    if own := os.environ.get("KDJAX_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "kdjax"


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)
