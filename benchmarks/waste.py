"""The compiled train step's FLOPs over the least possible, for every method.

    python -m benchmarks.waste

Counted are convolutions and dot products in the optimised program that kdjax runs, of
the phase in which the student learns from labels. The least is what every network takes
alone, compiled the same way: forward and backward for a trained one; forward, as far as
the method reads it, for a frozen one that is read; and a method's own adapters. What
trained networks share is counted for each, so that ONE stays below 1. Products within
the losses, which a method's formula asks for, are listed apart, a method's own passes
through networks (BSS's attack) among them. Runs on CPU; nothing is trained.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import _kdjax, measure
from benchmarks.cases import Case
from kdjax import losses, methods, models
from kdjax.methods import METHODS, Context
from kdjax.preflight.hlo import flops
from kdjax.runtime import backend
from kdjax.runtime.rng import fold
from kdjax.train.program import Program
from kdjax.train.step import Step

LIMIT = 1.05
_TEACHERS = {
    0: {},
    1: {"expert": "wrn-40-1"},
    None: {"expert": "wrn-40-1", "assistant": "wrn-28-1"},
}


class Least:
    """The least FLOPs of steps; what a network takes is compiled once."""

    def __init__(self, batch: int):
        """Counts for batches of so many images."""
        self._batch, self._known = batch, {}

    def parts(self, program: Program) -> dict[str, int]:
        """Returns FLOPs by part: each network's, the adapters' and the losses'."""
        step = program.step
        rows = self._batch * step.method.num_views
        found = {
            role: self._trained(step, name, rows) for role, name in step.roles.items()
        }
        behind = _Behind(program, rows)
        for teacher, name in step.teachers.items():
            if behind.reads(teacher):
                found[teacher] = self._frozen(step, teacher, name, rows)
        found["adapters"], found["losses"] = behind.flops()
        return found

    def _trained(self, step: Step, name: str, rows: int) -> int:
        key = name, step.num_classes, step.image_shape, rows
        if key not in self._known:
            model = models.create(name, step.num_classes)

            def loss(params: Any, stats: Any, images: Any, labels: Any) -> jax.Array:
                outputs, _ = model.apply(
                    {"params": params, "batch_stats": stats},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                )
                return jnp.mean(losses.cross_entropy(outputs.logits, labels))

            variables = _variables(step, name)
            self._known[key] = count(
                jax.grad(loss),
                variables["params"],
                variables["batch_stats"],
                *_batch(step, rows),
            )
        return self._known[key]

    def _frozen(self, step: Step, teacher: str, name: str, rows: int) -> int:
        key = name, step.num_classes, step.image_shape, rows, step.target_id(teacher)
        if key not in self._known:
            model = models.create(name, step.num_classes)

            def read(variables: Any, images: Any) -> Any:
                return step.method.teacher_targets(
                    model.apply(variables, images, train=False)
                )

            images, _ = _batch(step, rows)
            self._known[key] = count(read, _variables(step, name), images)
        return self._known[key]


def _variables(step: Step, name: str) -> Any:
    return models.shapes(name, step.num_classes, step.image_shape, step.dtype)


def _batch(step: Step, rows: int) -> tuple[Any, Any]:
    images = jax.ShapeDtypeStruct((rows, *step.image_shape), step.dtype)
    return images, jax.ShapeDtypeStruct((rows,), jnp.int32)


class _Behind:
    """What lies behind the networks' outputs: adapters and terms."""

    def __init__(self, program: Program, rows: int):
        self._step, self._rows = program.step, rows
        self._state, _ = program.specs
        self._outputs, self._targets = (
            jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype),
                dict(shapes),
            )
            for shapes in (program.step.output_specs, program.step.target_specs)
        )

    def flops(self) -> tuple[int, int]:
        """Returns the adapters' FLOPs and the losses', gradients included."""
        outputs, params, given = self._outputs, self._state.params, self._given()
        both = count(jax.grad(self._whole, argnums=(0, 1)), outputs, params, given)
        adapted = jax.eval_shape(self._adapt, outputs, params, given)
        terms = jax.grad(self._loss, argnums=(0, 1, 2))
        alone = count(terms, outputs, adapted, params, given)
        return both - alone, alone

    def reads(self, teacher: str) -> bool:
        """Returns whether anything is computed of what the teacher says."""

        def whole(target: Any, outputs: Any, params: Any, given: Any) -> jax.Array:
            targets = {**given["targets"], teacher: target}
            return self._whole(outputs, params, {**given, "targets": targets})

        target, given = self._targets[teacher], self._given()
        made = jax.make_jaxpr(whole)(target, self._outputs, self._state.params, given)
        used = {id(var) for equation in made.jaxpr.eqns for var in equation.invars}
        own = made.jaxpr.invars[: len(jax.tree.leaves(target))]
        return any(id(var) in used for var in own)

    def _given(self) -> dict[str, Any]:
        images, labels = _batch(self._step, self._rows)
        return {
            "stats": self._state.batch_stats,
            "memory": self._state.memory,
            "targets": self._targets,
            "frozen": {
                teacher: _variables(self._step, name)
                for teacher, name in self._step.teachers.items()
            },
            "images": images,
            "labels": labels,
        }

    def _whole(self, outputs: Any, params: Any, given: Any) -> jax.Array:
        return self._loss(outputs, self._adapt(outputs, params, given), params, given)

    def _adapt(self, outputs: Any, params: Any, given: Any) -> dict[str, Any]:
        trains = self._step.method.phases()[self._step.phase].trains
        found = {}
        for name, adapter in self._step.adapters.items():
            if not trains((name,)):
                params = {**params, name: jax.lax.stop_gradient(params[name])}
            variables = {"params": params[name], "batch_stats": given["stats"][name]}
            found[name], _ = adapter.apply(
                variables,
                outputs,
                given["targets"],
                train=True,
                mutable=["batch_stats"],
            )
        return found

    def _loss(self, outputs: Any, adapted: Any, params: Any, given: Any) -> jax.Array:
        step = self._step
        complete = step.complete(params)

        def call(role: str, images: jax.Array) -> Any:
            return step.apply_role(role, complete, given["stats"], images)[0]

        context = Context(
            labels=given["labels"],
            index=jnp.arange(self._rows),
            outputs=outputs,
            targets=given["targets"],
            recorded={},
            adapted=adapted,
            step=jnp.zeros((), jnp.int32),
            key=fold(jax.random.key(0), "step"),
            phase=step.phase,
            memory=given["memory"],
            images=given["images"],
            call_role={role: functools.partial(call, role) for role in step.roles},
            call_teacher={
                name: functools.partial(step.outputs, step.teachers[name], variables)
                for name, variables in given["frozen"].items()
            },
        )
        terms, _ = step.method.terms_and_memory(context)
        return sum(jnp.mean(term.value) for term in terms.values())


def count(function: Any, *arguments: Any) -> int:
    """Returns the FLOPs of a function, compiled as kdjax compiles its steps.

    Args:
        function: of arrays.
        *arguments: shapes.
    """
    jitted = jax.jit(function, compiler_options=backend.compiler_options())
    lowered = jitted.lower(*arguments)
    text = lowered.as_text()
    if "dot_general" not in text and "convolution" not in text:
        return 0
    return flops.flops(lowered.compile().as_text())


def compare(program: Program, least: Least) -> dict[str, Any]:
    """Returns the FLOPs of a program's last phase, the least by part, and their ratio.

    Args:
        program: what `_kdjax.program` returns.
        least: for the program's batch.
    """
    program = program.phases[-1]
    found = flops.flops(_kdjax.compiled_text(program))
    parts = least.parts(program)
    return {"step": found, "least": parts, "ratio": found / sum(parts.values())}


def show(found: dict[str, dict[str, Any]], batch: int) -> None:
    """Prints a table for every method."""
    for name, figures in found.items():
        rows = [
            (part, f"{flops / 1e6 / batch:,.2f}")
            for part, flops in figures["least"].items()
        ]
        rows.append(("least", f"{sum(figures['least'].values()) / 1e6 / batch:,.2f}"))
        rows.append(("compiled step", f"{figures['step'] / 1e6 / batch:,.2f}"))
        rows.append(("ratio", f"{figures['ratio']:.4f}"))
        measure.show(name, ("part", "MFLOP per image"), rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Counts and returns 1 if a step does more than `LIMIT` times the least."""
    parser = measure.parser("waste", __doc__)
    parser.add_argument(
        "--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS)
    )
    parser.add_argument("--student", default="wrn-16-1")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    least, found = Least(options.batch), {}
    for name in options.methods:
        teachers = _TEACHERS[methods.create(name, {}).num_teachers]
        case = Case(name, options.student, teachers, batch=options.batch, size=64)
        found[name] = compare(_kdjax.program(case), least)
    show(found, options.batch)
    measure.save(options.out, {"batch": options.batch, "methods": found})
    return int(any(figures["ratio"] > LIMIT for figures in found.values()))


if __name__ == "__main__":
    sys.exit(main())
