"""The tables of the CTKD paper as graphs that train every expert once.

Zhao et al., *Highlight Every Step: Knowledge Distillation via Collaborative Teaching*.

    python -m kdjax.main --config configs/ctkd_tables.py:table2 --workdir runs/tables

The paper's accuracies (%, medians of 5 runs). With one working folder for all
tables, shared stages are trained once; `results.json` is that of the last command, and
running a command again restores its results. Table IV is two graphs, one for each data
set.

    table1         CIFAR-10, WRN-16-1 / WRN-40-1
                   baseline 91.28  kd 91.60  at 91.77  rlkd 91.96  ctkd 92.50
                   expert 93.43
                   and WRN-16-2 / WRN-40-2, the stages whose names end in -w2:
                   baseline 93.68  kd 93.93  at 94.11  rlkd 94.23  ctkd 94.42
                   expert 94.70
    table2         CIFAR-10: table1's, and rlkd_kd 92.30; the text's 'scratch teacher
                   alone', scratch_only, 91.54
    table3         CIFAR-10, what the expert teaches besides the scratch teacher's
                   logits: fitnet 91.70  weights 91.89 (CTKD-double-dagger)  ctkd 92.50
                   and with -w2: fitnet 93.98  weights 94.20  ctkd 94.42
    table4-svhn    baseline 94.48  kd 94.59  at 94.91  rlkd 95.77  ctkd 95.83
                   expert 95.89
    table4-cifar100  baseline 72.27  kd 72.54  at 72.98  rlkd 73.20  ctkd 74.70
                   expert 75.42
    table5         Tiny ImageNet: baseline 50.65  kd 51.26  at 52.11  rlkd 52.54
                   ctkd 53.59  expert 56.51
    digits         table2's and table3's stages on scikit-learn's digits

Hardware: a GPU or TPU, except for digits (six and a half minutes on two CPU cores).
Arguments shrink it as in `configs/ctkd.py`.
"""

from ml_collections import ConfigDict

from configs import common
from kdjax.experiment import builders
from kdjax.experiment.builders import StageConfig

_COMPARED = ("baseline", "kd", "at", "rlkd", "ctkd")
_COMBINED = ("rlkd_kd", "scratch_only")
_HANDED_OVER = ("fitnet", "weights", "ctkd")

TABLES = {
    "table1": (("cifar10", "cifar10-w2"), _COMPARED),
    "table2": (("cifar10",), _COMPARED + _COMBINED),
    "table3": (("cifar10", "cifar10-w2"), _HANDED_OVER),
    "table4-svhn": (("svhn",), _COMPARED),
    "table4-cifar100": (("cifar100",), _COMPARED),
    "table5": (("tiny_imagenet",), _COMPARED),
    "digits": (("digits",), (*_COMPARED, *_COMBINED, "fitnet", "weights")),
}
"""By table: its settings, which share data set and recipe, and its rows."""


def _stages(
    setting: common.Pair, rows: tuple[str, ...], suffix: str
) -> dict[str, StageConfig]:
    """Returns the expert and the given rows; the suffix ends every stage's name."""
    student, teacher = setting.student, setting.teacher
    expert = (f"expert{suffix}",)
    rocket = {"scratch": teacher}
    free = {**rocket, "tied": "none"}
    ctkd = {**rocket, "beta": setting.beta}
    weights = {**rocket, "beta": 0.0, "inherit": True}
    stages = {
        "expert": builders.stage(teacher),
        "baseline": builders.stage(student),
        "kd": builders.stage(student, "kd", expert),
        "at": builders.stage(student, "at", expert, at={"beta": setting.beta}),
        "rlkd": builders.stage(student, "rocket", rocket=rocket),
        "scratch_only": builders.stage(student, "rocket", rocket=free),
        "rlkd_kd": builders.stage(
            student, "rocket+kd", expert, rocket=rocket, kd={"alpha": 0.9}
        ),
        "ctkd": builders.stage(student, "ctkd", expert, ctkd=ctkd),
        "fitnet": builders.stage(student, "rocket+fitnet", expert, rocket=free),
        "weights": builders.stage(student, "ctkd", expert, ctkd=weights),
    }
    return {f"{row}{suffix}": stages[row] for row in ("expert", *rows)}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of a table, shrunk by the argument."""
    table, values = builders.parse_arg(arg, tuple(TABLES))
    names, rows = TABLES[table]
    stages: dict[str, StageConfig] = {}
    for name in names:
        suffix = "-w2" if name.endswith("-w2") else ""
        stages |= _stages(common.SETTINGS[name], rows, suffix)
    return builders.experiment(common.SETTINGS[names[0]], values, stages)
