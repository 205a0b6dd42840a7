"""Several train steps of one replica as one call: what the train program is made of."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.data.feed import DispatchInputs, Feed, TrainArrays
from kdjax.train import metrics
from kdjax.train.metrics import Metrics
from kdjax.train.networks import PreparedTeacher
from kdjax.train.replica_step import EpochTargets, train_step
from kdjax.train.state import TrainState
from kdjax.train.step import Step

Totals = dict[str, Any]
"""An epoch's sums so far: `metrics.zeros`, and with a recording its logits."""
RECORDING = "said"
"""The recorded logits' key in `Totals`, and so in checkpoints: it keeps its name."""

_Carry = tuple[TrainState, Totals, dict[str, Any] | None]


class Dispatch:
    """The steps of a dispatch, one after the other on the device."""

    def __init__(self, step: Step, feed: Feed, *, record: bool, looped: bool):
        """Traces nothing yet.

        Args:
            step: the stage's.
            feed: makes the batches.
            record: whether the student's training-mode logits are kept.
            looped: whether a dispatch makes several steps where it can.
        """
        self._step, self._record, self._looped = step, record, looped
        self._size = feed.stream.size
        # Inside jit, so that tracing it for its shapes serves the program as well.
        self._train_step = jax.jit(
            functools.partial(train_step, step, feed), inline=True
        )

    def __call__(
        self,
        count: int,
        state: TrainState,
        totals: Totals,
        teachers: Mapping[str, PreparedTeacher],
        targets: EpochTargets,
        train_arrays: TrainArrays,
        dispatch_inputs: DispatchInputs,
        key: jax.Array,
    ) -> tuple[TrainState, Totals]:
        """Returns state and sums after `count` steps; arguments as of `train_step`."""

        def one(_: jax.Array | int, carry: _Carry) -> _Carry:
            state, totals, params = carry
            new, measured, (index, logits) = self._train_step(
                state, teachers, targets, train_arrays, dispatch_inputs, key, params
            )
            sums = metrics.add(totals, measured, state.step)
            if self._record:
                sums[RECORDING] = totals[RECORDING].at[index].set(logits)
            return new, sums, self._compute_params(new)

        carry: _Carry = (state, totals, self._compute_params(state))
        if count == 1:
            return one(0, carry)[:2]
        return jax.lax.fori_loop(0, count, one, carry)[:2]

    def metrics(self, state: TrainState, *inputs: Any) -> Metrics:
        """Returns the metrics of one step; arguments as of `train_step`."""
        return self._train_step(state, *inputs, self._compute_params(state))[1]

    def zeros(self, measured: Metrics) -> Totals:
        """Returns the sums before the first step of an epoch.

        Args:
            measured: a step's metrics, or their shapes.
        """
        totals = metrics.zeros(measured)
        if self._record:
            shape = self._size, self._step.num_classes
            totals[RECORDING] = jnp.zeros(shape, self._step.dtype)
        return totals

    def _compute_params(self, state: TrainState) -> dict[str, Any] | None:
        """Returns the parameters that a loop of steps hands on beside the state.

        The update that makes a parameter then makes its bfloat16 as well: compiled for
        an H100, a bf16 step of CTKD has 815 kernels instead of 871. One step casts.
        """
        if not self._looped:
            return None
        return self._step.compute_params(state.params)


def evenly(steps: int, most: int) -> int:
    """Returns how many steps of an epoch one dispatch makes, `most` at the most.

    The largest divisor of the epoch's steps, so that one program serves them all; but
    `most` where only small numbers divide them: a further program then makes the rest.
    """
    most = min(most, steps)
    return next(
        (count for count in range(most, most // 2, -1) if steps % count == 0), most
    )
