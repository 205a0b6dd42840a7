"""Devices: the mesh, and where arrays live on it."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax.errors import UserError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over the given devices, all by default.

    Its axis 'data' shards the batch; every device holds the whole state, and BatchNorm
    and losses see the global batch.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what is split by its leading axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Raises UserError if a batch does not divide over the mesh's devices."""
    if batch_size % mesh.size:
        raise UserError(
            f"batch_size={batch_size} does not divide over {mesh.size} devices; "
            f"choices: multiples of {mesh.size}"
        )
