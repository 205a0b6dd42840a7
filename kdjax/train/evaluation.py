"""Networks on the test images: of a stage that is trained, and of a given network."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.data.feed import Feed
from kdjax.models import Variables
from kdjax.runtime import backend, parallel
from kdjax.train import metrics
from kdjax.train.replica_step import evaluate_batches
from kdjax.train.state import TrainState
from kdjax.train.step import Step


def lower(step: Step, feed: Feed, state: Any) -> jax.stages.Lowered:
    """Returns the evaluation program before it is compiled.

    Args:
        step: the stage's.
        feed: provides the test images, on its mesh.
        state: the replicas' states as one, or their shapes and shardings.
    """
    test = jax.jit(
        parallel.by_replica(
            functools.partial(evaluate_batches, step, feed.stream),
            feed.mesh,
            shared=(1,),
        ),
        out_shardings=parallel.over_replicas(feed.mesh),
    )
    with jax.set_mesh(feed.mesh):
        return test.lower(state, feed.test_specs)


def run(
    compiled: jax.stages.Compiled, state: TrainState, feed: Feed
) -> list[dict[str, float]]:
    """Returns 'accuracy/ROLE', 'top5/ROLE' and 'loss/ROLE' on all test images.

    One dictionary for every replica.

    Args:
        compiled: from `lower`.
        state: the replicas' states as one, on the devices.
        feed: provides the test images.
    """
    # Sums over valid images, so that padding in the last batch counts for nothing.
    sums = [compiled(state, batches) for batches in feed.test()]
    totals = parallel.fetch(jax.tree.map(lambda *leaves: sum(leaves), *sums))
    return [
        {
            name: float(values[i]) / float(totals["count"][i])
            for name, values in totals.items()
            if name != "count"
        }
        for i in range(len(totals["count"]))
    ]


def evaluate(step: Step, feed: Feed, variables: Variables) -> dict[str, float]:
    """Returns 'accuracy', 'top5' and 'loss' of a network that is not trained.

    Args:
        step: of its stage.
        feed: provides the test images; its mesh has one replica.
        variables: the network's.

    Raises:
        NotFiniteError: its loss is not finite.
    """
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(
        step=zero,
        params={"student": variables["params"]},
        batch_stats={"student": variables.get("batch_stats", {})},
        opt_state=None,
        memory={},
        phase=zero,
    )
    placed = jax.tree.map(
        lambda leaf: parallel.place(leaf, parallel.spread(feed.mesh, leaf)),
        parallel.stack([state]),
    )
    compiled = lower(step, feed, placed).compile(backend.compiler_options())
    (figures,) = run(compiled, placed, feed)
    return {
        name.removesuffix("/student"): metrics.finite(f"test {name}", value)
        for name, value in figures.items()
    }
