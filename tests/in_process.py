"""Commands in the process of the tests."""

import pytest

from kdjax.runtime.signals import Interrupt


def enter(monkeypatch: pytest.MonkeyPatch, root: object) -> None:
    """Goes to a folder; commands take no signals and keep no compiled programs."""
    monkeypatch.chdir(root)  # type: ignore[arg-type]
    monkeypatch.setattr(Interrupt, "install", lambda self: None)
    monkeypatch.setattr("kdjax.runtime.backend.use_compilation_cache", lambda: None)


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the start of training an error: bad input must be refused before."""

    def no_training(*args, **kwargs):
        raise AssertionError("bad input was accepted: training would start")

    monkeypatch.setattr("kdjax.experiment.run.Training", no_training)
