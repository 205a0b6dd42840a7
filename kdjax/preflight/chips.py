"""Chips that programs are compiled for without having them: their published figures."""

import dataclasses
from collections.abc import Mapping

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The figures of one device of JAX, as its maker publishes them.

    Attributes:
        name: as in a topology's name.
        platform: as `backend.platform` has it.
        memory: bytes; None if it is not judged whether a program fits.
        peak: FLOP/s of products by a config's precision, at JAX's default precision:
            float32 convolutions are bfloat16 passes on TPUs and TF32 on GPUs.
        bandwidth: bytes per second between chip and memory.
        interconnect: bytes per second to other chips, both directions together.
        usable: the share of the memory that JAX takes by default.
        shapes: examples of what may follow the name.
        source: of the figures.
    """

    name: str
    platform: str
    memory: int | None
    peak: Mapping[str, float]
    bandwidth: float | None
    interconnect: float | None
    shapes: tuple[str, ...]
    source: str
    usable: float = 1.0

    @property
    def limit(self) -> float | None:
        """Bytes that a program may take."""
        return None if self.memory is None else self.memory * self.usable


def _tpu(
    name: str,
    gib: float,
    tflops: float,
    bandwidth: float,
    interconnect: float,
    *shapes: str,
) -> Chip:
    """Returns a TPU from its published bfloat16 TFLOP/s and its gigabytes per second.

    At JAX's default precision float32 products are one bfloat16 pass: the same peak.
    """
    return Chip(
        name,
        "tpu",
        int(gib * _GIB),
        dict.fromkeys(("float32", "bf16"), tflops * 1e12),
        bandwidth * 1e9,
        interconnect * 1e9,
        shapes,
        f"Google Cloud's documentation of TPU {name}, system architecture",
    )


def _hopper(name: str, gigabytes: int, bandwidth: float) -> Chip:
    """Returns a GPU of NVIDIA's Hopper series, SXM, from its memory and bytes/s."""
    return Chip(
        name,
        "gpu",
        gigabytes * 10**9,
        # Dense: the data sheets' figures with sparsity are twice these.
        {"float32": 494.7e12, "bf16": 989.4e12, "float64": 66.9e12},
        bandwidth,
        900e9,
        ("1x1", "1x8", "4x8"),
        f"NVIDIA's {name.upper()} data sheet, SXM; H100 architecture white paper",
        usable=0.75,
    )


CHIPS = {
    chip.name: chip
    for chip in (
        # One of the chip's two cores: without hardware each core is a device, while on
        # a real v4 JAX makes one device of both.
        _tpu("v4", 16, 137.5, 600, 300, "2x2x1", "2x2x2", "4x4x4"),
        _tpu("v5e", 16, 197, 819, 400, "1x1", "2x2", "4x4", "4x8", "8x8", "16x16"),
        _tpu("v5p", 95, 459, 2765, 1200, "2x2x1", "2x2x2", "4x4x4"),
        _tpu("v6e", 32, 918, 1638, 800, "1x1", "2x2", "2x4", "4x4", "16x16"),
        _hopper("h100", 80, 3.35e12),
        _hopper("h200", 141, 4.8e12),
        Chip("cpu", "cpu", None, {}, None, None, ("1", "4"), "none"),
    )
}
"""By name."""
