"""What the profiler's trace of a step is read as."""

import importlib.util
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from benchmarks import profile
from benchmarks.profile import Kernel


def test_a_step_s_time_is_busy_or_gaps():
    found = profile.summary(
        [
            Kernel("loop_add_fusion.3", 1_000, 400),  # two steps of these
            Kernel("cudnn-conv.1", 1_200, 500),  # on another stream: overlaps
            Kernel("loop_add_fusion.14.0", 2_000, 100),
            Kernel("loop_add_fusion_7", 2_050, 20),  # within the one before
        ],
        steps=2,
    )
    assert found["kernels"] == 2
    assert found["span"] == pytest.approx(0.55e-6)
    assert found["busy"] == pytest.approx(0.4e-6)
    assert found["idle"] == pytest.approx(0.15e-6)
    assert found["gaps"] == 0.5
    assert [kind["name"] for kind in found["dearest"]] == [
        "loop_add_fusion",
        "cudnn-conv",
    ]
    assert found["dearest"][0]["count"] == 1.5
    assert found["dearest"][0]["seconds"] == pytest.approx(0.26e-6)


def test_published_bandwidths_are_found_by_the_device_s_name():
    assert profile.bandwidth("NVIDIA H100 80GB HBM3") == 3.35e12
    assert profile.bandwidth("cpu") is None
    assert profile.bandwidth("NVIDIA A100") is None


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None,
    reason="with libtpu 0.0.52 the profiler crashes on CPU",
)
def test_a_trace_has_the_operations_of_the_program(tmp_path):
    double = jax.jit(lambda x: jnp.tanh(x @ x))
    x = jnp.ones((64, 64))
    double(x).block_until_ready()
    with jax.profiler.trace(tmp_path):
        for _ in range(3):
            double(x).block_until_ready()
    found = profile.kernels(tmp_path)
    runs = Counter(kernel.name for kernel in found)
    assert set(runs.values()) == {3}
    assert found == sorted(found, key=lambda kernel: kernel.start)
    assert profile.summary(found, 3)["busy"] > 0


def test_the_tables_tell_the_share_of_the_bandwidth(capsys):
    found = profile.summary([Kernel("copy", 0, 1_000_000)], steps=1)
    figures = {"bytes": 10**9, "bytes_per_second": 1e12, "device": "NVIDIA H100"}
    profile.show("kd", {**found, **figures, "share_of_byte_bound": 0.25})
    out = capsys.readouterr().out
    assert "25.0%" in out
    assert "1,000.0" in out
