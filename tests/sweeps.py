"""The search with a stand-in for training."""

import re

from kdjax.sweep import __main__ as sweep

CONFIG = "configs/dgkd.py:digits,path=plain3/plain2,epochs=8,seeds=2,test_size=50"


def command(workdir, *args, config=CONFIG):
    return sweep.main(["sweep", "--config", config, f"--workdir={workdir}", *args])


def parsed(*args, config=CONFIG):
    return sweep.parse(["sweep", f"--config={config}", "--workdir=w", *args])


def refused(capsys, workdir, *args, config=CONFIG):
    """Runs a command that must fail cleanly; returns its one line."""
    assert command(workdir, *args, config=config) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"kdjax: .*\n", err)
    return err
