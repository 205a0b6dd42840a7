"""Devices to compile for, from a topology's name, without the hardware."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from kdjax.preflight.chips import CHIPS, Chip
from kdjax.runtime import private_names
from kdjax.runtime.errors import UserError

_NAME = re.compile(r"([a-z]\w*):([1-9]\d*(?:x[1-9]\d*){0,2})")
# Answers about this machine for libtpu, which otherwise looks for TPUs and prints.
_QUIET = {
    private_names.NO_TPU_METADATA: "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
_COMPILERS = {
    "tpu": ("libtpu", "preflight-tpu", "libtpu==0.0.52"),
    "gpu": (
        "jax_plugins.xla_cuda12",
        "preflight-gpu",
        "jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12 "
        "nvidia-cuda-runtime-cu12",
    ),
}
# NVIDIA's figures of the H100 and H200 SXM, which differ in their memory alone, and of
# compute capability 9.0 (CUDA C++ programming guide, technical specifications).
_HOPPER = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: %d
  memory_bandwidth: %d
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "%s"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Attributes:
        name: of the topology.
        chip: every device is one.
        devices: of JAX; their hardware need not exist.
    """

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]


def find(name: str) -> Target:
    """Returns the devices of a topology.

    Args:
        name: such as 'v5e:4x4' (chips in two or three dimensions), 'h100:2x8' (hosts
            and GPUs of each) or 'cpu:4' (virtual devices of this machine).

    Raises:
        UserError: an unknown topology, or its compiler is not installed.
    """
    parsed = _NAME.fullmatch(name)
    chip = CHIPS.get(parsed[1]) if parsed else None
    if not parsed or not chip:
        raise _unknown(name)
    shape = parsed[2]
    if chip.platform == "cpu":
        return Target(name, chip, _virtual(name, math.prod(map(int, shape.split("x")))))
    if shape.count("x") != chip.shapes[0].count("x"):
        raise _unknown(name)
    _check_compiler(chip)
    if chip.platform == "gpu":
        topology = topologies.get_topology_desc(
            chip.name, "cuda", target_config=_gpu(chip), topology=f"1x{shape}"
        )
    else:
        for variable, value in _QUIET.items():
            os.environ.setdefault(variable, value)
        try:
            topology = topologies.get_topology_desc(name, "tpu")
        except jax.errors.JaxRuntimeError as error:
            raise _unknown(name) from error
    return Target(name, chip, tuple(topology.devices))


def _gpu(chip: Chip) -> str:
    """Returns what XLA's compiler knows of a GPU."""
    return _HOPPER % (chip.memory, chip.bandwidth, chip.name.upper())


def _unknown(name: str) -> UserError:
    choices = ", ".join(
        f"{chip.name}:{shape}"
        for chip in CHIPS.values()
        for shape in (chip.shapes[0], chip.shapes[-1])
    )
    return UserError(
        f"unknown topology {name!r}; choices: {choices} and the like "
        "(chips by dimension; GPUs: hosts x GPUs)"
    )


def _check_compiler(chip: Chip) -> None:
    """Raises UserError unless the compiler for a chip can be imported."""
    module, extra, packages = _COMPILERS[chip.platform]
    try:
        there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        there = False
    if not there:
        raise UserError(
            f"the compiler for {chip.name} is not installed: pip install --no-deps "
            f"--target DIR {packages}, then PYTHONPATH=DIR; or, in an environment of "
            f"its own, pip install 'kdjax[{extra}]'"
        )


def _virtual(name: str, count: int) -> tuple[jax.Device, ...]:
    """Returns `count` virtual CPU devices of this machine."""
    with contextlib.suppress(RuntimeError):  # this process has its devices already
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"topology {name!r}: this process has {len(devices)} devices")
    return tuple(devices[:count])
