"""Sets of XLA's options, beside kdjax's own, for `benchmarks.options`."""

import re
from collections.abc import Sequence

from kdjax.runtime import backend
from kdjax.runtime.backend import COMMAND_BUFFERS, Options
from kdjax.runtime.errors import UserError

OWN = "kdjax"
"""The set of kdjax's own options: nothing beside them."""

_MODE = "xla_gpu_command_buffer_scheduling_mode"
_CONCURRENT: Options = {_MODE: "CONCURRENT"}
_LOOP: Options = {COMMAND_BUFFERS: ",".join((*backend.CAPTURED, "WHILE"))}
_NO_PDL: Options = {"xla_gpu_enable_pdl": False}

SETS: dict[str, dict[str, Options]] = {
    "gpu": {
        "concurrent": _CONCURRENT,
        "concurrent regions": {_MODE: "CONCURRENT_REGIONS"},
        # A graph of the whole loop instead of graphs that the host starts in each turn.
        "loop in a graph": _LOOP,
        "concurrent, loop in a graph": {**_CONCURRENT, **_LOOP},
        # XLA's default is with it, in the sets above, too.
        "no PDL": _NO_PDL,
        "concurrent, no PDL": {**_CONCURRENT, **_NO_PDL},
        "no convolutions in graphs": {
            COMMAND_BUFFERS: ",".join(
                kind for kind in backend.CAPTURED if kind != "CONVOLUTION"
            )
        },
        "unrolled loop in a graph": {
            **_LOOP,
            "xla_gpu_command_buffer_unroll_loops": True,
        },
        "double buffering": {"xla_gpu_enable_while_loop_double_buffering": True},
        "no tuning of fusions": {"xla_gpu_experimental_enable_fusion_autotuner": False},
        "no tuning": {"xla_gpu_autotune_level": "0"},
        # Late: ahead of time, these two take three times as long to compile.
        "convolution fusions": {"xla_gpu_experimental_enable_conv_fusion": True},
        "Triton fusions": {
            "xla_gpu_experimental_enable_triton_heroless_priority_fusion": True
        },
        # On an H100 in bf16 it is XLA's choice anyway.
        "NHWC": {"xla_gpu_force_conv_nhwc": True},
    },
    "cpu": {
        "XLA's default": {"xla_cpu_experimental_ynn_fusion_type": ""},
        "concurrent": {
            "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED"
        },
        "wide vectors": {"xla_cpu_prefer_vector_width": "512"},
    },
}
"""Sets of XLA's options by platform and name, as jaxlib 0.10.2 knows them."""

_OPTION = re.compile(r"(xla_\w+)=(.*)", re.DOTALL)
_NEXT = re.compile(r",(?=[^,]*=)")  # a value may be a list


def parse_set(text: str) -> Options:
    """Returns the options of `--set`.

    Args:
        text: NAME=VALUE[,NAME=VALUE]; 'true' and 'false' are booleans.

    Raises:
        UserError: anything else.
    """
    options: Options = {}
    for part in _NEXT.split(text):
        found = _OPTION.fullmatch(part.strip())
        if not found:
            raise UserError(
                f"--set {text!r}: {part!r} is not NAME=VALUE with an option of XLA, "
                f"such as {_MODE}=CONCURRENT"
            )
        options[found[1]] = {"true": True, "false": False}.get(
            found[2].lower(), found[2]
        )
    return options


def chosen(given: Sequence[str] | None, platform: str) -> dict[str, Options]:
    """Returns the sets to take, kdjax's own first.

    Args:
        given: the values of `--set`; None: the platform's list.
        platform: a key of `SETS`, or another one, which has no list.
    """
    if given is None:
        return {OWN: {}, **SETS.get(platform, {})}
    return {OWN: {}, **{text: parse_set(text) for text in given}}
