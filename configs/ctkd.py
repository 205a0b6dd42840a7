"""CTKD: a student taught by a scratch teacher's path and an expert's attention.

Zhao et al., *Highlight Every Step: Knowledge Distillation via Collaborative Teaching*,
Tables I, IV and V. An expert is trained alone; then student and scratch teacher learn
together, the student from the scratch teacher's current logits and the expert's
attention maps.

    python -m kdjax.main --config configs/ctkd.py --workdir runs/ctkd
    python -m kdjax.main --config configs/ctkd.py:digits --workdir runs/digits

Variants, with the paper's accuracies (%, medians of 5 runs) of student and teacher:

    cifar10        WRN-16-1 / WRN-40-1   92.50 / 93.43   Table I, left
    cifar10-w2     WRN-16-2 / WRN-40-2   94.42 / 94.70   Table I, right
    cifar100       WRN-16-2 / WRN-40-2   74.70 / 75.42   Table IV
    svhn           WRN-16-1 / WRN-40-1   95.83 / 95.89   Table IV
    tiny_imagenet  WRN-16-1 / WRN-40-1   53.59 / 56.51   Table V
    digits         WRN-16-1 / WRN-40-1   not in the paper: scikit-learn's digits, 8x8

Every variant takes epochs, batch_size, train_size, test_size and seeds as arguments,
as in `:cifar10,epochs=3,train_size=10000,seeds=1`; milestones scale with the epochs,
subsets are stratified and fixed. `scratch=replay` uses the logits that the expert had
during its training instead of training the scratch teacher, which would repeat that
training: the same student at the cost of KD. The recipes, and what the paper does not
state, are in `configs/common.py`.

Hardware: digits takes a minute or two on two CPU cores; the others are for a GPU or TPU
(one seed of CIFAR-10 trains WRN-40-1 twice and WRN-16-1 once for 200 epochs).
"""

from ml_collections import ConfigDict

from configs import common
from kdjax.experiment import builders
from kdjax.runtime.errors import unknown


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config for a variant, shrunk by the argument."""
    known = {**builders.SHRINK, "scratch": str}
    variant, values = builders.parse_arg(arg, tuple(common.SETTINGS), known)
    scratch = values.get("scratch", "joint")
    if scratch not in ("joint", "replay"):
        raise unknown("scratch", scratch, ("joint", "replay"))
    setting = common.SETTINGS[variant]
    return builders.experiment(
        setting,
        values,
        {
            "expert": builders.stage(setting.teacher),
            "student": builders.stage(
                setting.student,
                "ctkd",
                ("expert",),
                ctkd={
                    "scratch": setting.teacher,
                    "beta": setting.beta,
                    "replay": scratch == "replay",
                },
            ),
        },
    )
