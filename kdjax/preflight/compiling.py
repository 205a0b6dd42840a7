"""Compiles the train step of a stage as a run would, from shapes alone."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kdjax.data import device_feed, sources
from kdjax.experiment.bank_plan import plan
from kdjax.experiment.build import make_feed, make_steps, naming
from kdjax.experiment.config import Experiment
from kdjax.experiment.run import rounds
from kdjax.experiment.stage import Stage
from kdjax.preflight.hlo.collectives import Collective, collectives
from kdjax.preflight.hlo.flops import flops
from kdjax.preflight.hlo.kernels import kernels
from kdjax.preflight.hlo.traffic import traffic
from kdjax.preflight.target import Target
from kdjax.runtime import backend, parallel, private_names
from kdjax.runtime.errors import UserError, unknown
from kdjax.train.program import Program


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled train program. All figures are of one device.

    Attributes:
        stage: its name.
        target: what it is compiled for.
        replicas: how many seeds it trains side by side.
        seeds: how many seeds the stage has.
        batch: images of one replica's step, on all of its devices together.
        micro_batches: into how many a step is cut.
        banked: teachers whose outputs come from the bank.
        memory: bytes by kind.
        flops: of products in one step.
        traffic: bytes that one step reads and writes in memory.
        collectives: of one step.
        kernels: how many one step has, by kind.
        seconds: of compilation, without tracing.
    """

    stage: str
    target: Target
    replicas: int
    seeds: int
    precision: str
    batch: int
    micro_batches: int
    banked: tuple[str, ...]
    memory: Mapping[str, int]
    flops: int
    traffic: int
    collectives: tuple[Collective, ...]
    kernels: Mapping[str, int]
    seconds: float

    @property
    def needed(self) -> int:
        """Bytes of memory that the program takes."""
        # Aliased (donated) bytes are in the sum three times, and in memory once.
        return sum(self.memory.values()) - 2 * self.memory["aliased"]

    @property
    def crossing(self) -> int:
        """How many collectives pass something between replicas."""
        devices = np.arange(len(self.target.devices)).reshape(self.replicas, -1)
        return sum(one.between(devices.tolist()) for one in self.collectives)

    @property
    def seconds_at_peak(self) -> dict[str, float]:
        """Lower bounds of a step's seconds by resource, at the published peaks."""
        chip = self.target.chip
        seconds = {}
        if self.precision in chip.peak:
            seconds["products"] = self.flops / chip.peak[self.precision]
        if chip.bandwidth:
            seconds["memory"] = self.traffic / chip.bandwidth
        return seconds


def compile_stage(
    parsed: Experiment, target: Target, stage: str | None = None, replicas: int = 1
) -> Compiled:
    """Returns the compiled train program of a stage.

    Args:
        parsed: the experiment; its data need not be there.
        target: what to compile for.
        stage: its name; None: the last.
        replicas: how many seeds are trained side by side.

    Raises:
        UserError: an unknown stage, data that are streamed, parts that do not fit
            each other, a batch that does not divide, or a program that does not fit
            into the memory.
    """
    if stage is None:
        *_, stage = parsed.stages
    if stage not in parsed.stages:
        raise unknown("stage", stage, parsed.stages)
    chosen = parsed.stages[stage]
    mesh = _mesh(target, replicas)
    if target.chip.peak and parsed.precision not in target.chip.peak:
        raise UserError(
            f"{target.chip.name} has no published figures for precision="
            f"{parsed.precision}; choices: {', '.join(target.chip.peak)}"
        )
    with backend.compiling_for(target.chip.platform), naming(chosen):
        program = _program(parsed, chosen, mesh)
        return _compile(program, parsed, chosen, target)


def _mesh(target: Target, replicas: int) -> Mesh:
    count = len(target.devices)
    if replicas < 1 or count % replicas:
        fitting = (str(n) for n in range(1, count + 1) if count % n == 0)
        widths = [len(seeds) for seeds in rounds(replicas, count)]
        raise UserError(
            f"{replicas} replicas do not divide over the {count} devices of "
            f"{target.name}; choices: {', '.join(fitting)}"
            + f" (a run trains them in rounds of {' + '.join(map(str, widths))})"
            * (replicas > 0)
        )
    return parallel.make_mesh(target.devices, replicas=replicas)


def _program(parsed: Experiment, stage: Stage, mesh: Mesh) -> Program:
    """Returns a stage's program, as `Run` makes it."""
    source = sources.expected(**parsed.data)
    if not source.in_memory:
        raise UserError(
            f"data set {parsed.data['name']!r} does not fit into memory: the programs "
            "of streamed data cannot be compiled ahead yet; choices: "
            + ", ".join(n for n, s in sources.SOURCES.items() if s.in_memory)
            + ", and one's own data within data.memory_share"
        )
    steps = make_steps(parsed, source)
    return Program(
        steps[stage.name],
        make_feed(parsed, stage, device_feed.shapes(source, mesh), mesh),
        plan(parsed, steps, source.train_size).banked[stage.name],
        record=stage.name in parsed.recorded,
    )


def _compile(
    program: Program,
    parsed: Experiment,
    stage: Stage,
    target: Target,
) -> Compiled:
    """Compiles a program and returns its figures."""
    # One step: where a run's program makes several, all are alike.
    lowered = program.lower_train(1)
    # Test images stay on the device during training, but are no argument of the step.
    beside = _bytes(program.feed.test_specs)
    begin = time.perf_counter()
    try:
        compiled = lowered.compile(backend.compiler_options())
    except jax.errors.JaxRuntimeError as error:
        line = str(error).replace("\n", " ")
        # A program that is too large is refused, with its size only in this text.
        needed = private_names.needed_memory(line)
        if needed is None:
            raise UserError(
                f"the compiler for {target.chip.name} refuses the program: {line[:300]}"
            ) from error
        fixed = _bytes(program.inputs) + beside
        raise _too_large(program, target, needed + beside, fixed) from error
    seconds = time.perf_counter() - begin
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    result = Compiled(
        stage=stage.name,
        target=target,
        replicas=program.replicas,
        seeds=stage.seeds,
        precision=parsed.precision,
        batch=stage.recipe.batch_size,
        micro_batches=stage.recipe.accumulate,
        banked=program.banked,
        memory={
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
            "test images": beside,
        },
        flops=flops(text, unknown=1),
        traffic=traffic(text),
        collectives=tuple(collectives(text)),
        kernels=kernels(text),
        seconds=seconds,
    )
    limit = target.chip.limit
    if limit is not None and result.needed > limit:
        fixed = result.needed - result.memory["temporaries"]
        raise _too_large(program, target, result.needed, fixed)
    return result


def _bytes(tree: Any) -> int:
    """Returns the bytes that one device holds of arrays, without padding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _too_large(
    program: Program, target: Target, needed: float, fixed: float
) -> UserError:
    """Returns the error for a program that does not fit, with settings that might.

    Args:
        program: the program that does not fit.
        target: what it was compiled for.
        needed: bytes of one device that the program takes.
        fixed: the part of `needed` that does not shrink with the batch.
    """
    limit = target.chip.limit or 0.0
    line = (
        f"does not fit: {in_units(needed)} of {in_units(limit)} usable on each "
        f"{target.chip.name} of {target.name}"
    )
    if fixed >= limit:
        return UserError(
            f"{line}; {in_units(fixed)} of it do not depend on the batch (networks, "
            "optimiser, tables of the bank, training images): bank.use=false or a "
            "smaller train_size would lower it"
        )
    # Nearly all of the rest are activations, proportional to a micro-batch's images.
    shrink = math.ceil((needed - fixed) / (limit - fixed))  # how many times smaller
    batch, parts = program.feed.stream.batch_size, program.feed.micro_batches
    devices = program.mesh.shape["data"]
    images = batch // devices
    fitting = [str(n) for n in range(parts * shrink, images + 1) if images % n == 0]
    ways = [f"recipe.accumulate={fitting[0]}"] if fitting else []
    if batch // shrink >= devices * parts:
        smaller = batch // shrink // (devices * parts) * devices * parts
        ways.append(f"recipe.batch_size={smaller}")
    ways.append(f"{shrink} times the chips for the same batch")
    return UserError(f"{line}; estimated to fit: {', or '.join(ways)}")


def in_units(size: float) -> str:
    """Returns a number of bytes to print: three digits and a decimal unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{float(f'{size / factor:.3g}'):,g} {unit}"
    return f"{size:,.0f} B"
