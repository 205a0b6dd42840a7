"""The search with a stand-in for training."""

from kdjax.sweep import __main__ as sweep

CONFIG = "configs/dgkd.py:digits,path=plain3/plain2,epochs=8,seeds=2,test_size=50"


def command(workdir, *args, config=CONFIG):
    return sweep.main(["sweep", "--config", config, f"--workdir={workdir}", *args])


def parsed(*args, config=CONFIG):
    return sweep.parse(["sweep", f"--config={config}", "--workdir=w", *args])
