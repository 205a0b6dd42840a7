"""Private names of other libraries stand in one file, and may disappear."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdjax.runtime import private_names

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "kdjax").rglob("*.py"))
PLACE = ROOT / "kdjax" / "runtime" / "private_names.py"
KNOWN = re.compile(
    r"\b_trial_id|\b_study_id|\._storage\b|_del_thread_pool|SharedMemoryArray"
    r"|MAX_MEM_BUFFER_SIZE|MAX_RETRIES|NonMatchingChecksumError|_cifar_info"
    r"|temporary_assignment|tensorflow_datasets\.core|registered\.skip_registration"
    r"|terminated unexpectedly|of \[\\d|TPU_SKIP_MDS_QUERY|config\.values"
    r"|\b_src\b|coordinationservice"
)


def private_uses(tree):
    """Private attributes of anything but an object's own, and private modules."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name("self" | "cls")):
                continue
            case ast.Attribute(value=ast.Name("os"), attr="_exit"):  # documented
                continue
            case ast.Attribute(attr=name):
                yield name
            case ast.ImportFrom(module=str(module)) if not module.startswith("kdjax"):
                yield from module.split(".")
                yield from (alias.name for alias in node.names)
            case ast.Import(names=names):
                for alias in names:
                    yield from alias.name.split(".")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_private_names_stand_in_one_file(file):
    text = file.read_text()
    private = {
        name
        for name in private_uses(ast.parse(text))
        if name.startswith("_") and not name.startswith("__")
    }
    assert not private
    if file != PLACE:
        assert not KNOWN.findall(text)


def test_the_patterns_are_seen():
    assert KNOWN.search(PLACE.read_text())
    uses = set(private_uses(ast.parse("x[0]._trial_id\nfrom jax._src import core")))
    assert {"_trial_id", "_src"} <= uses


def test_importing_the_file_imports_no_library():
    code = (
        "import sys\n"
        "import kdjax.runtime.private_names\n"
        "libraries = {'jax', 'grain', 'tensorflow_datasets', 'optuna'}\n"
        "assert not libraries & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("change", [None, "name", "module"])
def test_the_limits_of_tfds_are_changed_for_a_while_or_left(monkeypatch, change):
    from tensorflow_datasets.core import shuffle
    from tensorflow_datasets.core.download import downloader

    places = [
        (private_names.tfds_sorts_in_memory, shuffle, "MAX_MEM_BUFFER_SIZE"),
        (private_names.tfds_retries, downloader, "MAX_RETRIES"),
    ]
    for function, module, name in places:
        before = getattr(module, name)
        if change == "name":
            monkeypatch.delattr(module, name)
        elif change == "module":
            monkeypatch.setitem(sys.modules, module.__name__, None)
        with function(5):
            within = getattr(module, name, None)
        assert within == {None: 5, "name": None, "module": before}[change]
        assert getattr(module, name, None) == (None if change == "name" else before)


@pytest.mark.parametrize("change", [None, "name", "module"])
def test_a_wrong_checksum_has_an_error_or_none(monkeypatch, change):
    from tensorflow_datasets.core.download import download_manager

    if change == "name":
        monkeypatch.delattr(download_manager, "NonMatchingChecksumError")
    elif change == "module":
        monkeypatch.setitem(sys.modules, download_manager.__name__, None)
    errors = private_names.tfds_checksum_errors()
    assert len(errors) == (change is None)
    assert not issubclass(ValueError, errors)  # so that `except` lets others pass


@pytest.mark.parametrize("change", [None, "name", "class", "module"])
def test_without_grains_thread_nothing_is_waited_for(monkeypatch, change):
    from grain._src.python.ipc import shared_memory_array as module

    asked = []

    class Ended:
        def apply(self, function):
            asked.append(function())
            raise ValueError("Pool not running")

    arrays = module.SharedMemoryArray
    monkeypatch.setattr(arrays, "_del_thread_pool", Ended())
    if change == "name":
        monkeypatch.delattr(arrays, "_del_thread_pool")
    elif change == "class":
        monkeypatch.delattr(module, "SharedMemoryArray")
    elif change == "module":
        monkeypatch.delitem(sys.modules, module.__name__)
    private_names.free_memory_of_ended_workers()
    assert asked == [0] * (change is None)


def test_texts_of_errors():
    died = RuntimeError("Worker process was terminated unexpectedly with exit code -9")
    assert private_names.is_about_a_dead_worker(died)
    assert not private_names.is_about_a_dead_worker(RuntimeError("no more rows"))
    line = "Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded"
    assert private_names.needed_memory(line) == 17.5 * 2**30
    assert private_names.needed_memory("Used up") is None
    assert private_names.is_about_a_lost_peer("Gloo: Connection closed by peer")
    assert not private_names.is_about_a_lost_peer("shapes differ")
