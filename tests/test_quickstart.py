"""The README's quick start as it stands: published networks, whole digits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.xdist_group("quickstart")
def test_the_quick_start_reaches_97_percent(tmp_path):
    command = "-m kdjax.main --config configs/ctkd.py:digits --workdir"
    assert command in (ROOT / "README.md").read_text()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    subprocess.run(
        [sys.executable, *command.split(), str(tmp_path)],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=900,
    )
    stages = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert stages["expert"]["model"] == "wrn-40-1"
    assert stages["student"]["model"] == "wrn-16-1"
    assert stages["student"]["others"]["scratch"]["model"] == "wrn-40-1"
    assert stages["student"]["test_accuracy"]["median"] >= 0.97
