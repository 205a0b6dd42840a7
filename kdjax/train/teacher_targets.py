"""What a method reads of frozen teachers, over the training images."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.device_feed import DeviceFeed
from kdjax.data.streaming.feed import StreamedFeed
from kdjax.models import Variables
from kdjax.runtime import backend, parallel
from kdjax.train.step import Step

_CHUNK = 1024  # images in one call


class Reader:
    """Runs a stage's teachers outside its train program, for the bank."""

    def __init__(self, step: Step, feed: DeviceFeed | StreamedFeed):
        """Compiles nothing yet.

        Args:
            step: the stage's step: says what its method reads.
            feed: makes the images, on the mesh.
        """
        self._step, self._feed = step, feed
        self._compiled: dict[str, Any] = {}
        self.compile_seconds = 0.0

    @property
    def chunk(self) -> int:
        """How many images one call takes."""
        devices = self._feed.mesh.size
        return math.ceil(min(_CHUNK, self._feed.stream.size) / devices) * devices

    def __call__(
        self,
        teacher: str,
        variables: Variables,
        index: np.ndarray,
        stream: int,
        epoch: int,
    ) -> list[np.ndarray]:
        """Returns what the method reads of a teacher, in float16: a list of leaves.

        Args:
            teacher: its stage.
            variables: of the teacher, on all devices.
            index: `[chunk]` positions of training images.
            stream: the seed of the stream.
            epoch: whose images these are.
        """
        mesh = self._feed.mesh
        args = (
            variables,
            self._feed.train_arrays,
            self._feed.choose(index, stream, epoch),
        )
        if teacher not in self._compiled:

            def read(variables, fixed, chosen):  # type: ignore[no-untyped-def]
                images = jax.lax.with_sharding_constraint(
                    self._feed.pick(fixed, chosen), parallel.over_devices(mesh)
                )
                found = self._step.targets({teacher: variables}, images)
                return [leaf.astype(jnp.float16) for leaf in jax.tree.leaves(found)]

            begin = time.perf_counter()
            everywhere = parallel.replicated(mesh)
            lowered = jax.jit(read, out_shardings=everywhere).lower(*args)
            self._compiled[teacher] = lowered.compile(backend.compiler_options())
            self.compile_seconds += time.perf_counter() - begin
        return parallel.fetch(self._compiled[teacher](*args))
