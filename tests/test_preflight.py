"""Preflight: programs compiled from shapes, for devices that need not be there."""

import dataclasses
import importlib.util
import json
import math

import jax
import numpy as np
import pytest

from kdjax.data import device_feed, sources
from kdjax.experiment.config import parse_config
from kdjax.experiment.flags import parse_flags
from kdjax.preflight import __main__ as command
from kdjax.preflight import compiling, report, target
from kdjax.preflight.chips import CHIPS
from kdjax.runtime import parallel
from kdjax.runtime.errors import UserError

TINY = "configs/dgkd.py:digits,path=plain3/plain2,seeds=3"


@pytest.fixture(autouse=True)
def _root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.fixture
def error(capsys):
    """Runs a command that must fail cleanly; returns its one line."""

    def run(topology, config=TINY, *args):
        assert (
            command.main([f"--config={config}", f"--topology={topology}", *args]) == 2
        )
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("kdjax: ")
        return err

    return run


def parsed(config=TINY):
    line = ["kdjax", f"--config={config}", "--workdir=w"]
    return parse_config(parse_flags(line).config)


@pytest.fixture(scope="module")
def made(request):
    """Compiles once; returns what is found, the program and what XLA made of it."""
    programs, executables = [], []
    make, build = compiling._program, jax.stages.Lowered.compile

    def keep_program(*args):
        programs.append(make(*args))
        return programs[-1]

    def keep_executable(self, options=None):
        executables.append(build(self, options))
        return executables[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        patch.setattr(compiling, "_program", keep_program)
        patch.setattr(jax.stages.Lowered, "compile", keep_executable)
        found = compiling.compile_stage(parsed(), target.find("cpu:4"), replicas=2)
    return found, programs[0], executables[-1]  # after the options were tried


@pytest.fixture
def compiled(made):
    return made[0]


@pytest.fixture
def known(monkeypatch, made):
    """Neither traces nor compiles again."""
    _, program, executable = made

    class Lowered:
        def compile(self, options=None):
            return executable

    monkeypatch.setattr(compiling, "_program", lambda *args: program)
    monkeypatch.setattr(program, "lower_train", lambda count: Lowered())


@pytest.mark.parametrize(
    "name",
    [
        "v5litepod-16",
        "v5e",
        "v5e:0x4",
        "v5e:4",
        "v5e:4x4x4",
        "v5p:2x2",
        "h100:8",
        "x:1",
    ],
)
def test_unknown_topologies_name_the_choices(error, name):
    line = error(name)
    for word in (repr(name), "v4:2x2x1", "v5e:16x16", "v6e:1x1", "h100:4x8", "cpu:4"):
        assert word in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e:2x2", ("libtpu==", "kdjax[preflight-tpu]", "PYTHONPATH")),
        ("h100:1x8", ("jax-cuda12-pjrt==", "nvcc", "kdjax[preflight-gpu]")),
    ],
)
def test_a_missing_compiler_is_named_with_the_command_that_installs_it(
    error, monkeypatch, name, words
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert all(word in error(name) for word in ("pip install", *words))


def test_chips_have_their_published_figures():
    for chip in CHIPS.values():
        if chip.platform != "cpu":
            assert chip.limit <= chip.memory
            assert min(chip.bandwidth, chip.interconnect, *chip.peak.values()) > 0
    assert CHIPS["v5e"].peak == {"float32": 197e12, "bf16": 197e12}
    assert CHIPS["h100"].limit == 60e9
    h200 = target._gpu(CHIPS["h200"])
    assert "memory_size: 141000000000\n  memory_bandwidth: 4800000000000\n" in h200
    # Two devices to a chip.
    assert (CHIPS["v4"].peak["bf16"] * 2, CHIPS["v4"].memory * 2) == (275e12, 2**35)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train_size": 100, "test_size": 30},
        {"validation": 200, "normalise": False},
        {"validation": 200, "train_size": 1000, "test_size": 100},
    ],
)
def test_the_shapes_of_data_that_are_not_there(settings):
    mesh = parallel.make_mesh(replicas=2)
    real = sources.load("digits", **settings)
    known = sources.expected("digits", **settings)
    for name in (
        "train_size",
        "test_size",
        "num_classes",
        "image_shape",
        "mean",
        "std",
    ):
        assert getattr(known, name) == getattr(real, name), name
    placed, shapes = device_feed.place(real, mesh), device_feed.shapes(known, mesh)

    def described(data):
        leaves = jax.tree.leaves((data.train, data.test))
        return [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves]

    assert described(placed) == described(shapes)


@pytest.mark.parametrize(
    "settings", [{"train_size": 1438}, {"validation": 1437}, {"test_size": 0}]
)
def test_sizes_beyond_the_data_are_refused_without_data(settings):
    with pytest.raises(UserError) as real:
        sources.load("digits", **settings)
    with pytest.raises(UserError) as known:
        sources.expected("digits", **settings)
    assert str(known.value) == str(real.value)


def test_the_compiled_program_of_two_replicas_passes_nothing_between_them(compiled):
    assert compiled.collectives
    assert all(one.groups for one in compiled.collectives)
    assert compiled.crossing == 0
    # Each replica's two devices do pass something, as if they were replicas.
    apart = dataclasses.replace(compiled, replicas=4)
    assert apart.crossing == len(compiled.collectives)


def test_the_products_are_those_of_the_networks(compiled):
    def conv(size, depth, features):  # 3x3; what falls on padding is left out
        return 2 * (3 * size - 2) ** 2 * depth * features

    def dense(depth):
        return 2 * depth * 10

    images = compiled.batch * compiled.replicas // 4
    guide = conv(8, 1, 16) + conv(8, 16, 16) + conv(4, 16, 32) + dense(128)
    # Forward, weights' and maps' gradients; nobody reads the images'.
    student = 2 * conv(8, 1, 16) + 3 * (conv(4, 16, 16) + dense(64))
    assert images == 32
    assert compiled.flops == pytest.approx(images * (guide + student), rel=0.02)


def test_the_report(compiled, capsys):
    memory = compiled.memory
    images = 1437 * (64 + 4)
    assert memory["arguments"] > images
    assert compiled.needed == (
        memory["arguments"]
        + memory["outputs"]
        - memory["aliased"]
        + memory["temporaries"]
        + memory["code"]
        + memory["test images"]
    )
    assert memory["test images"] == 2 * 256 * (64 + 4 + 1)
    found = json.loads(json.dumps(report.figures(compiled)))
    assert (found["stage"], found["devices"], found["replicas"]) == ("S2", 4, 2)
    assert found["rounds"] == [2, 1]
    assert found["collectives_between_replicas"] == 0
    assert found["seconds_at_published_peaks"] == {}
    assert sum(found["kernels_per_step"].values()) > 20
    report.show(compiled)
    out = capsys.readouterr().out
    for words in (
        "S2 on cpu:4",
        "kernels of a step",
        "all-reduce",
        "between replicas",
        "rounds of 2 + 1",
    ):
        assert words in out


def test_times_at_the_published_peaks(compiled):
    there = dataclasses.replace(compiled.target, chip=CHIPS["v5e"])
    found = dataclasses.replace(compiled, target=there, flops=197 * 10**9, traffic=819)
    assert found.seconds_at_peak == {"products": 1e-3, "memory": 1e-9}
    most = report.figures(found)["images_per_second_at_most"]
    assert most == pytest.approx(compiled.batch * 2 / 1e-3)


def test_what_does_not_divide_ends_with_what_would(error):
    line = error("cpu:4", f"{TINY},batch_size=30")
    assert all(word in line for word in ("'S2'", "batch_size=30", "multiples of 4"))
    line = error("cpu:4", TINY, "--replicas=3")
    assert all(word in line for word in ("3 replicas", "4 devices", "1, 2, 4", "2 + 1"))
    line = error("cpu:4", TINY, "--replicas=0")
    assert "0 replicas" in line


def test_other_bad_input(error):
    assert "choices: T3, S2" in error("cpu:4", TINY, "--stage=S3")
    assert "streamed" in error("cpu:4", "configs/dgkd.py:imagenet")
    assert "--help" in error("cpu:4", TINY, "--dry-run")
    assert "'stray'" in error("cpu:4", TINY, "stray")
    assert "'lr'" in error("cpu:4", TINY, "--config.recipe.lr=1")


@pytest.mark.usefixtures("known")
def test_a_program_that_does_not_fit_ends_with_what_might(error, monkeypatch, compiled):
    memory = compiled.needed - compiled.memory["temporaries"] // 2
    small = dataclasses.replace(CHIPS["cpu"], memory=memory)
    monkeypatch.setitem(CHIPS, "cpu", small)
    line = error("cpu:4", TINY, "--replicas=2")
    for words in ("'S2'", "does not fit: ", "accumulate=2,", "batch_size=32,"):
        assert words in line
    enough = dataclasses.replace(CHIPS["cpu"], memory=compiled.needed)
    monkeypatch.setitem(CHIPS, "cpu", enough)
    arguments = [f"--config={TINY}", "--topology=cpu:4", "--replicas=2"]
    assert command.main(arguments) == 0


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("memory", "words"),
    [
        # 21.58 GB wanted, of which little is there whatever the batch.
        (17e9, ("21.6 GB of 17 GB", "accumulate=2", "batch_size=32", "2 times")),
        (3e9, ("accumulate=8", "batch_size=8", "8 times")),
        (1e4, ("21.6 GB of 10 kB", "do not depend on the batch", "bank.use=false")),
    ],
)
def test_the_compiler_s_own_refusal_is_told_in_one_line(
    error, monkeypatch, made, memory, words
):
    def refuse(options=None):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.\n"
            "Used 20.10G of 15.75G hbm. Exceeded hbm capacity by 4.35G."
        )

    lowered = made[1].lower_train(1)
    lowered.compile = refuse
    monkeypatch.setattr(made[1], "lower_train", lambda count: lowered)
    small = dataclasses.replace(CHIPS["cpu"], memory=memory)
    monkeypatch.setitem(CHIPS, "cpu", small)
    line = error("cpu:4", TINY, "--replicas=2")
    assert all(word in line for word in words), line


def test_another_refusal_of_the_compiler_is_told_in_one_line(error, monkeypatch, known):
    def refuse(*args):
        raise jax.errors.JaxRuntimeError("INTERNAL: no\nway")

    lowered = compiling._program().lower_train(1)
    lowered.compile = refuse
    monkeypatch.setattr(compiling._program(), "lower_train", lambda count: lowered)
    line = error("cpu:4", TINY, "--replicas=2")
    assert all(word in line for word in ("'S2'", "cpu refuses", "INTERNAL: no way"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module"), [("v5e:2x2", "libtpu"), ("h100:1x4", "jax_plugins.xla_cuda12")]
)
def test_real_compilers(name, module, compiled):
    try:
        there = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        there = None
    if not there:
        pytest.skip(f"{module} is not installed")
    found = compiling.compile_stage(parsed(), target.find(name), replicas=2)
    assert found.crossing == 0
    assert 0 < found.needed < found.target.chip.limit
    assert math.isclose(found.flops, compiled.flops, rel_tol=0.05)
    assert np.all(np.array(list(found.seconds_at_peak.values())) > 0)
