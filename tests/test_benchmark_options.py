"""benchmarks.options: which sets of XLA's options are taken, told and left out."""

import importlib.util
import json
import math
from types import SimpleNamespace

import jax
import pytest

from benchmarks import option_sets, options
from benchmarks.cases import CASES, tiny
from benchmarks.option_sets import OWN, SETS
from kdjax.runtime import backend
from kdjax.runtime.errors import UserError

KNOWN = {"xla_cpu_enable_fast_math": True}
UNKNOWN = {"xla_made_up": "1"}
ONE_ROUND = {"precision": "float32", "rounds": 1, "calls": 1, "busy": 1.0}
QUICK = ["--tiny", "--cases", "supervised", "--rounds=1", "--calls=1", "--busy=1"]


def cells(text):
    """Returns the rows of printed tables."""
    rows = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def test_a_tiny_run_gives_a_table_and_figures(tmp_path, capsys):
    out = tmp_path / "options.json"
    assert options.main([*QUICK, f"--out={out}"]) == 0
    saved = json.loads(out.read_text())
    assert saved["precision"] == "float32"
    case = saved["cases"]["supervised"]
    assert list(case["sets"]) == [OWN, *SETS["cpu"]]
    assert (case["refused"], case["left_out"]) == ({}, [])
    own = backend.compiler_options()
    assert own
    for name, figures in case["sets"].items():
        assert figures["options"] == own | SETS["cpu"].get(name, {})
        assert figures["temp_bytes"] > 0
        assert figures["loss_apart"] < 1e-4
        assert figures["ratio"]["median"] == pytest.approx(
            figures["seconds"]["median"] / case["sets"][OWN]["seconds"]["median"]
        )
    assert case["sets"]["XLA's default"]["options"] != own
    rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == [OWN, *SETS["cpu"]]
    assert rows[0][2] == "1.000 [1.000, 1.000]"


def test_what_the_compiler_refuses_is_told_and_left_out(tmp_path, capsys):
    out = tmp_path / "options.json"
    sets = ["--set=xla_made_up=1", "--set=xla_cpu_enable_fast_math=true"]
    assert options.main([*QUICK, *sets, f"--out={out}"]) == 0
    case = json.loads(out.read_text())["cases"]["supervised"]
    assert list(case["sets"]) == [OWN, "xla_cpu_enable_fast_math=true"]
    assert case["sets"]["xla_cpu_enable_fast_math=true"]["options"].items() >= (
        KNOWN.items()
    )
    assert "xla_made_up" in case["refused"]["xla_made_up=1"]
    told = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(told) == 1
    assert "xla_made_up=1" in told[0]


@pytest.fixture
def failing(monkeypatch):
    """Variants that run nothing; the second one made fails in a given call."""
    made = []

    def variants(call):
        class Variant:
            steps, loss = 1, 2.0

            def __init__(self, start, compiled):
                made.append(self)
                self.calls, self.bad = 0, len(made) == 2

            def __call__(self):
                self.calls += 1
                if self.bad and self.calls >= call:
                    raise jax.errors.JaxRuntimeError("INTERNAL: no graph\nmore")

        monkeypatch.setattr(options._kdjax, "Variant", Variant)

    return variants


# A set runs once for its loss, twice to warm up, and twice in the round.
@pytest.mark.parametrize("call", [1, 2, 4])
def test_what_fails_when_it_is_run_is_told_and_left_out(failing, capsys, call):
    failing(call)
    sets = {OWN: {}, "bad": {}, "good": {}}
    found = options.measure_case(tiny(CASES["supervised"]), sets, math.inf, **ONE_ROUND)
    assert list(found["sets"]) == [OWN, "good"]
    assert found["refused"] == {"bad": "INTERNAL: no graph"}
    assert capsys.readouterr().out == "left out: bad (INTERNAL: no graph)\n"


def test_without_kdjax_s_own_there_is_nothing_to_compare_with():
    with (
        pytest.raises(UserError, match="kdjax's own options fail: no memory"),
        options.Sets({OWN: {}}, math.inf).attempt(OWN),
    ):
        raise jax.errors.JaxRuntimeError("no memory")


@pytest.mark.parametrize(
    "text", ["nonsense", "xla_gpu_enable_pdl", "pdl=true", "=1", "", "xla_a=1,b=2"]
)
def test_a_set_that_is_none_ends_in_one_line(capsys, text):
    assert options.main([*QUICK, f"--set={text}"]) == 2
    line = " ".join(capsys.readouterr().out.split())
    assert line.startswith(f"options: --set {text!r}: ")
    assert "NAME=VALUE" in line


def test_values_may_be_lists_and_booleans():
    text = "xla_gpu_enable_command_buffer=FUSION,CUBLAS,xla_gpu_enable_pdl=False"
    assert option_sets.parse_set(text) == {
        "xla_gpu_enable_command_buffer": "FUSION,CUBLAS",
        "xla_gpu_enable_pdl": False,
    }


def test_the_list_of_a_gpu_is_accepted_by_this_jaxlib():
    program = jax.jit(lambda x: x).lower(1.0)
    for name, chosen in option_sets.chosen(None, "gpu").items():
        assert bool(chosen) == (name != OWN)
        program.compile(chosen)  # options of GPUs are known on CPU, too
    assert option_sets.chosen(None, "tpu") == {OWN: {}}


def test_further_sets_are_taken_while_there_is_time(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(options.time, "perf_counter", lambda: clock[0])
    names = (OWN, "a", "b", "c")
    state = options.Sets({name: {} for name in names}, deadline=100.0)
    seconds = {OWN: 30.0, "a": 20.0, "b": 20.0}
    taken = []
    # At 50 s the longest, 30, and the reserve fit exactly; at 70 no longer.
    for name in state.take(lambda: 20.0):
        taken.append(name)
        clock[0] += seconds[name]
    assert taken == [OWN, "a", "b"]
    assert state.left_out == ["c"]
    assert capsys.readouterr().out == "no time left for c\n"


def test_without_any_time_kdjax_s_own_is_timed(tmp_path, capsys):
    out = tmp_path / "options.json"
    assert options.main([*QUICK, "--seconds=0", f"--out={out}"]) == 0
    case = json.loads(out.read_text())["cases"]["supervised"]
    assert list(case["sets"]) == [OWN]
    assert case["left_out"] == list(SETS["cpu"])
    assert "no time left for XLA's default, " in capsys.readouterr().out


def test_ahead_of_time_nothing_is_run(monkeypatch, capsys):
    """For a CPU, in place of an H100."""
    here = SimpleNamespace(devices=jax.devices()[:1])
    monkeypatch.setattr(options.target, "find", lambda name: here)
    sets = {OWN: {}, "same": KNOWN, "bad": UNKNOWN}
    sets["other"] = {"xla_disable_hlo_passes": "fusion"}
    found = options.compile_case(
        tiny(CASES["supervised"]), sets, math.inf, precision="bf16"
    )
    same = {name: figures["same_text"] for name, figures in found["sets"].items()}
    assert same == {OWN: True, "same": True, "other": False}
    assert list(found["refused"]) == ["bad"]
    own = found["sets"][OWN]
    assert "CONVOLUTION" in own["options"][backend.COMMAND_BUFFERS]
    assert 0 < own["kernels"] < found["sets"]["other"]["kernels"]
    assert own["bytes"] > 0
    options.show_compiled("supervised", found)
    assert cells(capsys.readouterr().out)[2][-1] == "no"


def test_ahead_of_time_needs_the_compiler(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda module: None)
        assert options.main(["--ahead"]) == 2
    assert "jax-cuda12-plugin" in capsys.readouterr().out
