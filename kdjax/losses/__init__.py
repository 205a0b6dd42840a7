"""Distillation losses as pure functions of arrays.

Every loss is called as `f(student, teacher, *, ...)`: the student's array first, the
teacher's second, hyper-parameters by keyword. A loss that decomposes over examples
returns one value per example, `[batch]`; take the mean for the usual batch loss.

Nothing here stops a gradient. A frozen or blocked teacher is the caller's decision:

    kd(student, jax.lax.stop_gradient(teacher), temperature=4.0).mean()

Inputs are computed in at least float32: bfloat16 goes up, float64 stays. Shapes that
do not fit raise ValueError; they are never broadcast.
"""

from kdjax.losses.channels import fsp, fsp_matrix, nst
from kdjax.losses.features import (
    attention_distance,
    attention_map,
    attention_transfer,
    feature_mse,
)
from kdjax.losses.logits import (
    cross_entropy,
    dgkd,
    ensemble_logits,
    kd,
    logit_matching,
    soft_cross_entropy,
)
from kdjax.losses.maps import (
    ab,
    factor_transfer,
    hierarchical_context,
    ofd,
    ofd_margin,
    vid,
)
from kdjax.losses.pooling import adaptive_pool, match_size
from kdjax.losses.singular import kdsvd

__all__ = [
    "ab",
    "adaptive_pool",
    "attention_distance",
    "attention_map",
    "attention_transfer",
    "cross_entropy",
    "dgkd",
    "ensemble_logits",
    "factor_transfer",
    "feature_mse",
    "fsp",
    "fsp_matrix",
    "hierarchical_context",
    "kd",
    "kdsvd",
    "logit_matching",
    "match_size",
    "nst",
    "ofd",
    "ofd_margin",
    "soft_cross_entropy",
    "vid",
]
