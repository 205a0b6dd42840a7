"""The collectives of a compiled program: what its devices pass to each other."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from kdjax.preflight.hlo.module import Module

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# replica_groups={{0,1},{2,3}} or source_target_pairs={{0,1},{1,0}}
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")
# replica_groups=[2,2]<=[4], or transposed, [2,2]<=[2,2]T(1,0)
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
# replica_groups=mesh['x'=2,'y'=4] {'y'}
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_AXIS = re.compile(r"'([^']*)'=(\d+)")
# An axis, or a part of it: 'x':(2)4 are the 4 that follow its major 2.
_PART = re.compile(r"'([^']*)'(?::\((\d+)\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction, and what it does in one run of the program.

    Attributes:
        kind: one of `KINDS`.
        times: how often it runs.
        bytes: that each device contributes every time.
        groups: numbers of the devices that take part together; empty means one group
            of all devices.
    """

    kind: str
    times: int
    bytes: int
    groups: tuple[tuple[int, ...], ...]

    def between(self, groups: Sequence[Iterable[int]]) -> bool:
        """Returns whether the collective passes data from one group to another.

        Args:
            groups: all devices' numbers.
        """
        place = {device: i for i, group in enumerate(groups) for device in group}
        own = self.groups or (tuple(place),)
        return any(len({place[device] for device in group}) > 1 for group in own)


def collectives(text: str, *, unknown: int = 1) -> list[Collective]:
    """Returns the collectives of a program.

    Args:
        text: of a module: `compiled.as_text()`.
        unknown: how often the body of a loop without a known trip count runs.

    Raises:
        ValueError: groups that are written in an unknown way.
    """
    module = Module.parse(text)
    collected = []
    for instruction, times, computation in module.instructions(unknown):
        # Of an asynchronous pair the start counts: its end moves nothing more.
        kind = instruction.kind.removesuffix("-start")
        if kind in KINDS:
            size = sum(array.bytes for array in module.read(computation, instruction))
            collected.append(Collective(kind, times, size, _groups(instruction.rest)))
    return collected


def _groups(rest: str) -> tuple[tuple[int, ...], ...]:
    if counted := _COUNTED.search(rest):
        # An iota of shape `source`, transposed by `order` and reshaped to `shape`.
        shape, source, order = (_numbers(part or "") for part in counted.groups())
        devices = np.arange(math.prod(source)).reshape(source)
        if order:
            devices = devices.transpose(order)
        return tuple(map(tuple, devices.reshape(shape).tolist()))
    if mesh := _MESH.search(rest):
        return _along(dict(_AXIS.findall(mesh[1])), _PART.findall(mesh[2]))
    if listed := _LISTED.search(rest):
        inside = re.findall(r"\{([\d,]*)\}", listed[1])
        return tuple(_numbers(group) for group in inside if group)
    if "replica_groups" in rest or "source_target_pairs" in rest:
        raise ValueError(f"collective with unknown groups: {rest}")
    return ()


def _along(
    axes: dict[str, str], chosen: list[tuple[str, str, str]]
) -> tuple[tuple[int, ...], ...]:
    """Returns the groups along some axes of a mesh, or parts of them."""
    sizes: list[int] = []
    inside: dict[int, int] = {}  # dimensions of the groups, by their rank
    for axis, text in axes.items():
        length = int(text)
        parts = [i for i, part in enumerate(chosen) if part[0] == axis]
        if len(parts) > 1:
            raise ValueError(f"groups along two parts of an axis: {chosen}")
        if parts:
            _, before, size = chosen[parts[0]]
            # The axis as [major, middle, minor], of which groups lie along the middle.
            major, middle = int(before or 1), int(size or length)
            inside[parts[0]] = len(sizes) + 1
            sizes += [major, middle, length // (major * middle)]
        else:
            sizes.append(length)
    dims = [inside[rank] for rank in sorted(inside)]
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    devices = np.moveaxis(devices, dims, range(-len(dims), 0))
    # [..., the groups' dimensions] -> [groups, devices of each]
    each = math.prod(sizes[dim] for dim in dims)
    return tuple(map(tuple, devices.reshape(-1, each).tolist()))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
