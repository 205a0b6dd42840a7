"""Distillation losses as pure functions of arrays.

Every loss is called as `f(student, teacher, *, ...)`: the student's array first, the
teacher's second, hyper-parameters by keyword. A loss that decomposes over examples
returns one value per example, `[batch]`; take the mean for the usual batch loss. One
that compares the structure of the batch returns a scalar.

Nothing here stops a gradient. A frozen or blocked teacher is the caller's decision:

    kd(student, jax.lax.stop_gradient(teacher), temperature=4.0).mean()

Losses are computed in at least float32: bfloat16 is promoted, float64 stays. Shapes
that do not match raise ValueError; nothing is broadcast.
"""

from kdjax.losses.channels import fsp, fsp_matrix, nst
from kdjax.losses.contrastive import (
    class_order,
    crd,
    crd_log_partition,
    crd_scores,
    crd_update,
    draw_negatives,
    unit_length,
)
from kdjax.losses.ensembles import (
    dgkd,
    ensemble_logits,
    gated_logits,
    guide_divergences,
    mutual,
    one,
)
from kdjax.losses.features import (
    attention_distance,
    attention_map,
    attention_transfer,
    feature_mse,
)
from kdjax.losses.logits import (
    cross_entropy,
    dist,
    dkd,
    kd,
    logit_matching,
    soft_cross_entropy,
    standardise_logits,
)
from kdjax.losses.maps import (
    ab,
    factor_transfer,
    hierarchical_context,
    ofd,
    ofd_margin,
    vid,
)
from kdjax.losses.pooling import adaptive_pool, match_attention, match_size
from kdjax.losses.relations import correlation, pkt, rkd_angle, rkd_distance, similarity
from kdjax.losses.self_supervised import select_ranked, selected_kd, view_similarities
from kdjax.losses.singular import kdsvd
from kdjax.losses.transformed import nkd, ttm, wttm

__all__ = [
    "ab",
    "adaptive_pool",
    "attention_distance",
    "attention_map",
    "attention_transfer",
    "class_order",
    "correlation",
    "crd",
    "crd_log_partition",
    "crd_scores",
    "crd_update",
    "cross_entropy",
    "dgkd",
    "dist",
    "dkd",
    "draw_negatives",
    "ensemble_logits",
    "factor_transfer",
    "feature_mse",
    "fsp",
    "fsp_matrix",
    "gated_logits",
    "guide_divergences",
    "hierarchical_context",
    "kd",
    "kdsvd",
    "logit_matching",
    "match_attention",
    "match_size",
    "mutual",
    "nkd",
    "nst",
    "ofd",
    "ofd_margin",
    "one",
    "pkt",
    "rkd_angle",
    "rkd_distance",
    "select_ranked",
    "selected_kd",
    "similarity",
    "soft_cross_entropy",
    "standardise_logits",
    "ttm",
    "unit_length",
    "vid",
    "view_similarities",
    "wttm",
]
