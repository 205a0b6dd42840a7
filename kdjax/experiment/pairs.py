"""A student and its teachers, whatever the method: hyper-parameters that fit them.

Warm-ups that the authors count in epochs keep their share of the epochs. Weights are
those of the authors' scripts, where `chosen` has no others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.experiment import builders
from kdjax.experiment.builders import StageConfig
from kdjax.methods import METHODS
from kdjax.runtime.errors import unknown

EPOCHS = 240
"""Of the public benchmark on CIFAR-100, in whose scripts warm-ups are counted."""


def hyper(
    method: str,
    teachers: Sequence[str],
    epochs: int,
    steps: int,
    chosen: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Returns the hyper-parameters of a method by part, for a pair of networks.

    Args:
        method: a row of `METHODS`, or several joined by '+'.
        teachers: their models, the first of which trains beside the student where a
            method wants that.
        epochs: of the stage.
        steps: of an epoch.
        chosen: by part, what shall differ.

    Raises:
        UserError: an unknown method.
    """
    share = min(epochs / EPOCHS, 1.0)

    def lasting(of: int) -> int:
        return max(1, round(of * share * steps))

    fitting: dict[str, dict[str, Any]] = {
        "dkd": {"warmup_steps": lasting(20)},
        "reviewkd": {"warmup_steps": lasting(20)},
        "one": {"rampup_steps": lasting(80)},
        "bss": {"decay_steps": lasting(80)},
        "dml": {"peers": (teachers[0],)},
        "rocket": {"scratch": teachers[0]},
        "ctkd": {"scratch": teachers[0]},
    }
    for name in ("ab", "ft", "fsp"):
        fitting[name] = {"init_epochs": max(1, round(30 * share))}
    fitting["sskd"] = {"init_epochs": max(1, round(60 * share))}
    options = {}
    for part in method.split("+"):
        if part not in METHODS:
            raise unknown("method", part, METHODS)
        options[part] = {**fitting.get(part, {}), **chosen.get(part, {})}
    return options


def stage(
    method: str,
    teachers: Mapping[str, str],
    student: str,
    epochs: int,
    steps: int,
    chosen: Mapping[str, Mapping[str, Any]],
) -> StageConfig:
    """Returns the stage of a student.

    Args:
        method: a row of `METHODS`, or several joined by '+'.
        teachers: their models by stage; the first teaches where the method takes one,
            and trains beside the student where the method wants that.
        student: its model.
        epochs: of the stage.
        steps: of an epoch.
        chosen: by part, hyper-parameters that shall differ.

    Raises:
        UserError: an unknown method.
    """
    networks = tuple(teachers.values()) or (student,)
    options = hyper(method, networks, epochs, steps, chosen)
    wanted = {METHODS[part].num_teachers for part in options} - {0}
    taught_by = tuple(teachers) if None in wanted else tuple(teachers)[: len(wanted)]
    return builders.stage(student, method, taught_by, **options)
