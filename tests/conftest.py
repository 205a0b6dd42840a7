"""Strict settings for every test: eight devices, no silent rank promotion."""

import os
import shutil

from quick import QUICK

# Before jax starts: the tests of sharding need several devices.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    # Tiny programs compile longer than they run.
    f" --xla_backend_optimization_level=0 {QUICK}"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import compiled
import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
pytest.register_assert_rewrite("command")

# Three quarters of the tests' time is compiling. Set here, not by variables: processes
# that tests start have the library's own settings.
PROGRAMS = compiled.own_folder()
if PROGRAMS:
    jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Whose path, other in every process, would be part of what a program is found by.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def pytest_sessionstart(session):
    if not hasattr(session.config, "workerinput"):  # none of several workers
        compiled.prune()


def pytest_sessionfinish(session):
    if PROGRAMS:
        shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def _programs_are_kept_and_do_not_pile_up():
    """Drops compiled programs: each maps memory, and Linux limits the maps."""
    if PROGRAMS:
        compiled.take(PROGRAMS, "tests")
    yield
    if PROGRAMS:
        compiled.give(PROGRAMS, "tests")
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keeps decoded data and compiled programs out of the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("KDJAX_CACHE", str(folder))


@pytest.fixture
def x64():
    """Computes in float64, where whole steps can be compared."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)
