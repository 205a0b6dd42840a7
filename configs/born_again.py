"""Born-again networks: generations of equal networks, each taught by the one before.

Furlanello et al., *Born-Again Neural Networks*, 2018: CE + H(teacher, student) at
temperature 1, generation after generation, each from its own initial weights.

    python -m kdjax.main --config configs/born_again.py:model=resnet20,generations=3

Arguments are those of `configs/kd.py` without teacher and student, and: model, and
generations, their number, of which the first learns from labels alone. The recipe is
that of `configs/kd.py`; the paper's own networks are DenseNets and Wide ResNets.

Hardware: a GPU or TPU, except for dataset=digits.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import kd
from kdjax.experiment import builders
from kdjax.experiment.config import MOST_GENERATIONS
from kdjax.runtime.errors import UserError

ARGUMENTS = {**builders.SHRINK, "dataset": str, "model": str, "generations": int}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of some generations, changed by the arguments."""
    _, values = builders.parse_arg(arg, ("",), ARGUMENTS)
    model = builders.network(values.get("model", "resnet20"))
    generations = values.get("generations", 3)
    if generations < 2:
        raise UserError(f"generations={generations} must be at least 2")
    if generations > MOST_GENERATIONS:
        raise UserError(
            f"generations={generations} are too many; the most is {MOST_GENERATIONS}"
        )
    hyper: dict[str, Any] = {"form": "added", "alpha": 1.0, "temperature": 1.0}
    stages = {"generation0": builders.stage(model)}
    for number in range(1, generations):
        before = (f"generation{number - 1}",)
        taught = builders.stage(model, "kd", before, kd=hyper)
        stages[f"generation{number}"] = taught | {"copy": number}
    setting = kd.setting(values.get("dataset", "cifar100"))
    return builders.experiment(setting, values, stages)
