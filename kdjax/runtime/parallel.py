"""Devices and processes: the mesh, the placement of arrays, and agreement.

The mesh has two axes. 'data' shards the batch: BatchNorm and losses see the global
batch. 'replica' trains different seeds of one stage at once: no data move along it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kdjax.runtime.errors import UserError

LARGE = 64 << 20
"""Above this many bytes, an array's rows are sharded over a replica's devices."""
DATA = P("data")
"""The partition of a batch over the data axis, inside the programs."""


def make_mesh(
    devices: Sequence[jax.Device] | None = None, *, replicas: int = 1
) -> Mesh:
    """Returns the mesh over the given devices, all by default.

    Args:
        devices: their number must be a multiple of `replicas`.
        replicas: the number of seeds that are trained at once.
    """
    devices = jax.devices() if devices is None else devices
    # The devices' order is that of one axis, whatever the number of replicas: arrays
    # that all devices hold can be used with every mesh.
    line = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
    return Mesh(
        line.devices.reshape(replicas, -1),
        ("replica", "data"),
        axis_types=(AxisType.Auto,) * 2,
    )


def side_by_side(remaining: int, devices: int) -> int:
    """Returns the number of the remaining seeds that are trained at once.

    It is the largest number that divides the devices, so that none is idle.
    """
    return max(n for n in range(1, min(remaining, devices) + 1) if devices % n == 0)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, P())


def over_replicas(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays with a leading axis of replicas."""
    return NamedSharding(mesh, P("replica"))


def spread(
    mesh: Mesh, leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct
) -> NamedSharding:
    """Returns the sharding of one array with a leading axis of replicas.

    Every device of a replica holds a small array whole. The rows of a large one, such
    as a memory bank, are sharded over the replica's devices, if they divide evenly.
    """
    if _is_key(leaf) or leaf.ndim < 2 or leaf.shape[1] % mesh.shape["data"]:
        return over_replicas(mesh)
    large = leaf.size // leaf.shape[0] * leaf.dtype.itemsize > LARGE
    return NamedSharding(mesh, P("replica", "data")) if large else over_replicas(mesh)


def over_devices(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch over all devices, whatever their replica."""
    return NamedSharding(mesh, P(("replica", "data")))


def check_batch(mesh: Mesh, batch_size: int, parts: int = 1) -> None:
    """Raises UserError if a batch does not divide into parts over the data axis."""
    devices = mesh.shape["data"]
    if batch_size % (devices * parts):
        what = f"{devices} devices" + (f" in accumulate={parts}" if parts > 1 else "")
        raise UserError(
            f"batch_size={batch_size} does not divide over {what}; "
            f"choices: multiples of {devices * parts}"
        )


def by_replica(function: Callable, mesh: Mesh, shared: Sequence[int] = ()) -> Callable:
    """Returns a function that runs once per replica, on that replica's devices.

    Args:
        function: of one replica's arguments.
        mesh: its 'replica' axis is the leading axis of arguments and results.
        shared: positions of arguments that all replicas share.
    """

    def run(*args: Any) -> Any:
        # A replica's block has a leading axis of 1: [1, ...] -> [...], and back below.
        own = [
            arg if i in shared else jax.tree.map(lambda leaf: leaf[0], arg)
            for i, arg in enumerate(args)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*own))

    def mapped(*args: Any) -> Any:
        specs = tuple(P() if i in shared else P("replica") for i in range(len(args)))
        return jax.shard_map(
            run,
            mesh=mesh,
            in_specs=specs,
            out_specs=P("replica"),
            # Manual over replicas only; XLA partitions over 'data'.
            axis_names={"replica"},
            # Nothing is summed over replicas; unchecked, loops may start at constants.
            check_vma=False,
        )(*args)

    return mapped


# Any: trees keep their structure while their leaves become arrays of another library,
# which no type can express.


def stack(trees: Sequence[Any]) -> Any:
    """Stacks the replicas' trees on the host, along a leading axis of replicas."""
    return jax.tree.map(_stack, *trees)


def _stack(*leaves: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    if _is_key(leaves[0]):
        data = np.stack([np.asarray(jax.random.key_data(leaf)) for leaf in leaves])
        return jax.random.wrap_key_data(jnp.asarray(data))
    return np.stack([np.asarray(leaf) for leaf in leaves])


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Places a tree of arrays, which every process has, on the devices."""
    return jax.tree.map(lambda leaf: _place(leaf, sharding), tree)


def _place(leaf: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if _is_key(leaf):
        # JAX cannot place random keys on devices of other processes, only their data.
        data = np.asarray(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(_place(data, sharding))
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])


def _is_key(leaf: object) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def fetch(tree: Any) -> Any:
    """Returns a tree of arrays, wherever they are, as NumPy arrays in every process."""

    def one(leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(one, tree)


def is_first() -> bool:
    """Returns whether this is the first process, which writes the files."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agree(value: int) -> int:
    """Returns the largest of the processes' values, in all of them."""
    if jax.process_count() == 1:
        return value
    values = multihost_utils.process_allgather(np.asarray(value, np.int32))
    return int(np.max(values))
