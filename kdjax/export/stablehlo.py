"""Networks as StableHLO, which JAX, XLA and IREE run on CPU, GPU and TPU."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from kdjax.export.deployed import Deployed
from kdjax.export.folding import fold
from kdjax.export.graph import trace

PLATFORMS = ("cpu", "cuda", "tpu")
"""The platforms that a file is for."""


def write(network: Deployed, path: Path, *, uint8: bool = False) -> None:
    """Writes a network as a serialised `jax.export.Exported`.

    Its argument is float32 `[N, H, W, C]`, normalised, or with `uint8` uint8 as
    decoded; its result is float32 `[N, classes]`. BatchNorm is folded.

    Args:
        network: the network to write.
        path: of the file.
        uint8: whether normalisation is part of the program.
    """
    dtype = jnp.uint8 if uint8 else jnp.float32
    graph = fold(trace(network.apply(uint8), network.image_shape, dtype))
    (batch,) = jax.export.symbolic_shape("N")
    spec = jax.ShapeDtypeStruct((batch, *network.image_shape), dtype)
    exported = jax.export.export(jax.jit(graph), platforms=PLATFORMS)(spec)
    path.write_bytes(exported.serialize())


def load(path: Path) -> Callable[[jax.Array], jax.Array]:
    """Returns the function of a file: see `write`."""
    return jax.export.deserialize(bytearray(path.read_bytes())).call
