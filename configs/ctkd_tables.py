"""The tables of the CTKD paper, each as one graph that trains every expert once.

Zhao et al., *Highlight Every Step: Knowledge Distillation via Collaborative Teaching*.

    python -m kdjax.main --config configs/ctkd_tables.py:table2 --workdir runs/tables

The paper's accuracies (%, medians of 5 runs); one working folder for all tables trains
what they share once:

    table1         CIFAR-10, WRN-16-1 / WRN-40-1
                   baseline 91.28  kd 91.60  at 91.77  rlkd 91.96  ctkd 92.50
                   expert 93.43
    table1-w2      CIFAR-10, WRN-16-2 / WRN-40-2
                   baseline 93.68  kd 93.93  at 94.11  rlkd 94.23  ctkd 94.42
                   expert 94.70
    table2         CIFAR-10: table1's, and rlkd_kd 92.30; the text's 'scratch teacher
                   alone', scratch_only, 91.54
    table3         CIFAR-10, what the expert hands over besides the scratch teacher's
                   logits: fitnet 91.70  weights 91.89 (CTKD-double-dagger)  ctkd 92.50
    table3-w2      fitnet 93.98  weights 94.20  ctkd 94.42
    table4-svhn    baseline 94.48  kd 94.59  at 94.91  rlkd 95.77  ctkd 95.83
                   expert 95.89
    table4-cifar100  baseline 72.27  kd 72.54  at 72.98  rlkd 73.20  ctkd 74.70
                   expert 75.42
    table5         Tiny ImageNet: baseline 50.65  kd 51.26  at 52.11  rlkd 52.54
                   ctkd 53.59  expert 56.51
    digits         table2's and table3's stages on scikit-learn's digits; not a paper's

Hardware: a GPU or TPU, but for digits (about ten minutes on two CPU cores). Arguments
shrink it as in `configs/ctkd.py`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

_COMPARED = ("baseline", "kd", "at", "rlkd", "ctkd")
_COMBINED = ("rlkd_kd", "scratch_only")
_HANDED_OVER = ("fitnet", "weights", "ctkd")

TABLES = {
    "table1": ("cifar10", _COMPARED),
    "table1-w2": ("cifar10-w2", _COMPARED),
    "table2": ("cifar10", _COMPARED + _COMBINED),
    "table3": ("cifar10", _HANDED_OVER),
    "table3-w2": ("cifar10-w2", _HANDED_OVER),
    "table4-svhn": ("svhn", _COMPARED),
    "table4-cifar100": ("cifar100", _COMPARED),
    "table5": ("tiny_imagenet", _COMPARED),
    "digits": ("digits", (*_COMPARED, *_COMBINED, "fitnet", "weights")),
}


def _rows(setting: common.Setting) -> dict[str, dict[str, Any]]:
    """Returns every stage of the tables by its name."""
    student, teacher = setting.student, setting.teacher
    rocket = {"scratch": teacher}
    expert = ("expert",)
    return {
        "baseline": common.stage(student),
        "kd": common.stage(student, "kd", expert),
        "at": common.stage(student, "at", expert, at={"beta": setting.beta}),
        "rlkd": common.stage(student, "rocket", rocket=rocket),
        "scratch_only": common.stage(
            student, "rocket", rocket={**rocket, "tied": "none"}
        ),
        "rlkd_kd": common.stage(student, "rocket+kd", expert, rocket=rocket),
        "ctkd": common.stage(
            student, "ctkd", expert, ctkd={**rocket, "beta": setting.beta}
        ),
        "fitnet": common.stage(
            student, "rocket+fitnet", expert, rocket={**rocket, "tied": "none"}
        ),
        "weights": common.stage(
            student, "ctkd", expert, ctkd={**rocket, "beta": 0.0, "inherit": True}
        ),
    }


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of a table, shrunk by the argument."""
    table, shrink = common.parse_arg(arg, tuple(TABLES))
    name, rows = TABLES[table]
    setting = common.SETTINGS[name]
    stages = {"expert": common.stage(setting.teacher)}
    stages |= {row: _rows(setting)[row] for row in rows}
    return common.experiment(setting, shrink, stages)
