"""The compiled train step's FLOPs over the least possible, for every method.

    python -m benchmarks.waste

Counted are convolutions and dot products in the optimised program that kdjax runs. The
least is what every network takes alone, compiled the same way: forward and backward for
a trained one, forward, as far as the method reads it, for a frozen one; and a method's
own adapters. Products within the losses, which a method's formula asks for, are listed
apart. Runs on CPU; nothing is trained.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import _kdjax, measure
from benchmarks.cases import Case
from kdjax import backend, losses, methods, models
from kdjax.hlo import products
from kdjax.keys import fold
from kdjax.methods import METHODS, Context
from kdjax.step import Step

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

    def parts(self, step: Step) -> dict[str, int]:
        """Returns FLOPs by part: each network's, the adapters' and the losses'."""
        found = {role: self._trained(step, name) for role, name in step.roles.items()}
        for teacher, name in step.teachers.items():
            found[teacher] = self._frozen(step, teacher, name)
        outputs, targets = (self._whole(dict(shapes)) for shapes in step.seen)
        adapted = {}
        for name, adapter in step.adapters.items():
            found[name], adapted[name] = _adapter(adapter, name, outputs, targets)
        found["losses"] = self._losses(step, outputs, targets, adapted)
        return found

    def _whole(self, shapes: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (self._batch, *leaf.shape[1:]), leaf.dtype
            ),
            shapes,
        )

    def _inputs(self, step: Step, name: str) -> tuple[Any, Any, Any]:
        images = jax.ShapeDtypeStruct((self._batch, *step.image_shape), step.dtype)
        labels = jax.ShapeDtypeStruct((self._batch,), jnp.int32)
        variables = models.shapes(name, step.num_classes, step.image_shape, step.dtype)
        return variables, images, labels

    def _trained(self, step: Step, name: str) -> int:
        key = name, step.num_classes, step.image_shape
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

            variables, images, labels = self._inputs(step, name)
            self._known[key] = count(
                jax.grad(loss),
                variables["params"],
                variables["batch_stats"],
                images,
                labels,
            )
        return self._known[key]

    def _frozen(self, step: Step, teacher: str, name: str) -> int:
        key = name, step.num_classes, step.image_shape, step.read_id(teacher)
        if key not in self._known:
            model = models.create(name, step.num_classes)

            def read(variables: Any, images: Any) -> Any:
                return step.method.read(model.apply(variables, images, train=False))

            variables, images, _ = self._inputs(step, name)
            self._known[key] = count(read, variables, images)
        return self._known[key]

    def _losses(self, step: Step, outputs: Any, targets: Any, adapted: Any) -> int:
        def loss(parts: Any, targets: Any, labels: Any) -> jax.Array:
            context = Context(
                labels=labels,
                index=jnp.arange(self._batch),
                outputs=parts[0],
                targets=targets,
                recorded={},
                adapted=parts[1],
                step=jnp.zeros((), jnp.int32),
                key=fold(jax.random.key(0), "step"),
            )
            terms = step.method.terms(context).values()
            return sum(jnp.mean(term.value) for term in terms)

        labels = jax.ShapeDtypeStruct((self._batch,), jnp.int32)
        return count(jax.grad(loss), (outputs, adapted), targets, labels)


def _adapter(adapter: Any, name: str, outputs: Any, targets: Any) -> tuple[int, Any]:
    """Returns an adapter's FLOPs, backward included, and the shape of what it gives."""
    key = fold(jax.random.key(0), "adapter", name)
    variables = jax.eval_shape(
        lambda: adapter.lazy_init(key, outputs, targets, train=True)
    )

    def apply(params: Any, outputs: Any, stats: Any, targets: Any) -> Any:
        made, _ = adapter.apply(
            {"params": params, "batch_stats": stats},
            outputs,
            targets,
            train=True,
            mutable=["batch_stats"],
        )
        return made

    def loss(*arguments: Any) -> jax.Array:
        leaves = jax.tree.leaves(apply(*arguments))
        return sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)

    arguments = (
        variables.get("params", {}),
        outputs,
        variables.get("batch_stats", {}),
        targets,
    )
    # Its gradient goes on into the networks.
    flops = count(jax.grad(loss, argnums=(0, 1)), *arguments)
    return flops, jax.eval_shape(apply, *arguments)


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
    return products.flops(lowered.compile().as_text())


def compare(program: Any, least: Least) -> dict[str, Any]:
    """Returns a program's FLOPs, the least by part, and their ratio.

    Args:
        program: what `_kdjax.program` returns.
        least: for the program's batch.
    """
    found = products.flops(_kdjax.compiled_text(program))
    parts = least.parts(program.step)
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
