"""Rocket Launching: a booster that is trained together with the student."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
from flax.traverse_util import flatten_dict

from kdjax import losses
from kdjax.methods.base import Context, Method, Path, Term, cross_entropy
from kdjax.runtime.errors import UserError

LOWER = ("stem", "stage1_")
_TIED = {"none": (), "lower": LOWER, "all": ("stem", "stage")}


def scratch_terms(context: Context, hint_weight: float) -> dict[str, Term]:
    """Returns the scratch teacher's cross-entropy and its hint to the student.

    The hint is lambda ||a_S - stop_gradient(a_T2)||^2 (CTKD, Eq. 4; Rocket Launching's
    hint with gradient block): only the student gets its gradient.
    """
    return {
        "ce/scratch": Term(cross_entropy(context, "scratch")),
        "hint/scratch": hint(context, context.outputs["scratch"].logits, hint_weight),
    }


def hint(context: Context, scratch: jax.Array, weight: float) -> Term:
    """Returns the distance of the student's logits from given ones, as a term."""
    # The gradient block: the scratch teacher's gradient is as if it learned alone. That
    # is why an expert's recorded logits can replace its logits.
    student = context.outputs["student"].logits
    return Term(losses.logit_matching(student, jax.lax.stop_gradient(scratch)), weight)


@dataclasses.dataclass(frozen=True)
class Rocket(Method):
    """Rocket Launching (Zhou et al., 2018), the CTKD paper's RLKD.

    A booster, here 'scratch', and the light student learn together:
    CE(student) + CE(scratch) + hint_weight ||a_S - stop_gradient(a_scratch)||^2.

    The student takes the convolutions of its lower layers from the scratch teacher:
    with tied='lower' the stem and its blocks of the first group, with 'all' (the
    released code's param_share) the stem and its blocks of every group, each the
    scratch teacher's block of the same number; 'none' shares nothing (the released
    code shares the stem even then). A scratch teacher equal to the student starts from
    the same weights, so that the hint is 0. BatchNorm, scales and shifts included,
    stays with each network, as in the released code.
    """

    scratch: str = "wrn-40-1"
    hint_weight: float = 0.03
    tied: Literal["none", "lower", "all"] = "lower"

    def roles(self, student: str) -> dict[str, str]:
        """Returns the student and the scratch teacher."""
        return {"student": student, "scratch": self.scratch}

    def ties(self, params: Mapping[str, Mapping]) -> dict[Path, Path]:
        """Returns the student's convolutions that are the scratch teacher's."""
        prefixes = _TIED[self.tied]
        owned = flatten_dict(params["scratch"])
        ties: dict[Path, Path] = {}
        for path, leaf in flatten_dict(params["student"]).items():
            if not path[0].startswith(prefixes) or path[-2].startswith("bn"):
                continue
            if path not in owned or owned[path].shape != leaf.shape:
                raise UserError(
                    f"rocket: the student's {'/'.join(path)} {leaf.shape} is not "
                    f"in scratch teacher {self.scratch!r}; it must be at least as deep "
                    "and as wide as the student, or tied='none'"
                )
            ties["student", *path] = ("scratch", *path)
        if prefixes and not ties:
            raise UserError(
                f"rocket: tied={self.tied!r} shares nothing: the student has no layer "
                f"named {' or '.join(f'{prefix}...' for prefix in prefixes)}, only "
                f"{', '.join(params['student'])}; choices: networks such as wrn-16-1, "
                "or tied='none'"
            )
        return ties

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns the scratch teacher's cross-entropy and the hint."""
        return scratch_terms(context, self.hint_weight)
