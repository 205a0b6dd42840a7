"""One's own data by an entry point of another package."""

import importlib.metadata

import numpy as np
import pytest

from kdjax.data import own
from kdjax.runtime.errors import UserError


class Entry:
    """Stands in for an installed package's entry point."""

    name, value = "moths", "moth_package:load"

    def __init__(self, function):
        self.function = function

    def load(self):
        if isinstance(self.function, Exception):
            raise self.function
        return self.function


@pytest.fixture
def install(monkeypatch):
    """Installs a data source called 'moths'."""

    def put(function):
        def entry_points(group):
            return [Entry(function)] if group == "kdjax.data" else []

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)

    return put


class TestEntryPoints:
    def test_a_packages_function_is_a_data_set(self, rng, install):
        images = rng.integers(0, 256, (20, 8, 8), dtype=np.uint8)

        def load(path, *, twice=1):
            return images, np.arange(20) % 2 * twice, images[:2], [0, 1], ["x", "y"]

        install(load)
        data = own.open_own({"name": "moths", "path": "somewhere"})
        assert (data.name, data.classes) == ("moths", ("x", "y"))
        assert (data.train_size, data.test_size) == (20, 2)
        with pytest.raises(
            UserError, match=r"training label 2 is out of range: .* 0 to 1"
        ):
            own.open_own({"name": "moths", "options": {"twice": 2}})

    def test_mistakes(self, install):
        with pytest.raises(
            UserError, match=r"'moths'; choices: folder, npz, .*arrays$"
        ):
            own.OwnData("moths")
        install(ImportError("no module named 'wings'"))
        with pytest.raises(UserError, match=r"moth_package:load\) cannot .*'wings'"):
            own.open_own({"name": "moths"})
        install(lambda path: [1, 2])
        with pytest.raises(UserError, match="returned list; it must return a tuple"):
            own.open_own({"name": "moths"})
        install(3)
        with pytest.raises(UserError, match="is not a function"):
            own.open_own({"name": "moths"})
