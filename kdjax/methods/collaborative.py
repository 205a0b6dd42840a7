"""Methods whose teacher learns beside the student: Rocket Launching and CTKD."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax import losses
from kdjax.errors import UserError, unknown
from kdjax.methods.base import Context, Method, Path, Term, cross_entropy, only
from kdjax.methods.features import attention_distance, attention_maps
from kdjax.models import Outputs, Variables

_LOWER = ("stem", "stage1_")
_TIED = {"none": (), "lower": _LOWER, "all": ("stem", "stage")}
_ATTENTION_TARGETS = ("student", "scratch")


def scratch_terms(context: Context, hint_weight: float) -> dict[str, Term]:
    """Returns both networks' cross-entropy and the scratch teacher's hint.

    The hint is lambda ||a_S - stop_gradient(a_T2)||^2 (CTKD, Eq. 4; Rocket Launching's
    hint with gradient block): it moves the student alone.
    """
    return {
        "ce/student": Term(cross_entropy(context, "student")),
        "ce/scratch": Term(cross_entropy(context, "scratch")),
        "hint/scratch": _hint(context, context.outputs["scratch"].logits, hint_weight),
    }


def _hint(context: Context, scratch: jax.Array, weight: float) -> Term:
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
    code shares the stem even then). A scratch teacher equal to the student starts at
    the same point and hints at nothing. BatchNorm, scales and shifts included, stays
    with each network, as in the released code.
    """

    scratch: str = "wrn-40-1"
    hint_weight: float = 0.03
    tied: str = "lower"

    def __post_init__(self) -> None:
        if self.tied not in _TIED:
            raise unknown("tied of rocket", self.tied, _TIED)

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
                    f"rocket: the student's {'/'.join(path)} {leaf.shape} has no equal "
                    f"in scratch teacher {self.scratch!r}; it must be at least as deep "
                    "and as wide as the student, or tied='none'"
                )
            ties["student", *path] = ("scratch", *path)
        return ties

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns both cross-entropies and the hint."""
        return scratch_terms(context, self.hint_weight)


@dataclasses.dataclass(frozen=True)
class CTKD(Method):
    """Collaborative Teaching (Zhao et al., *Highlight Every Step*, Eq. 4).

    L = CE(student) + CE(scratch) + lambda ||a_S - stop_gradient(a_T2)||^2
        + beta sum_j AT(A_S^j, A_T1^j)

    with the scratch teacher T2, trained in the same step, and the expert T1, the
    stage's one teacher.

    Deviations: the released code pairs the expert's maps with the scratch teacher's
    groups (attention_target='scratch' here); the default follows the paper. The norm
    of the attention term is the released code's mean of squares, to which beta = 1e3
    belongs; norm='l2' is the paper's. The paper does not print lambda: 0.03 is Rocket
    Launching's. The released code also shares the stem, the paper does not say so.

    Attributes:
        scratch: the scratch teacher's model.
        hint_weight: lambda.
        beta: weight of the attention term; 0 leaves it out.
        attention_target: whom the expert's attention guides, student or scratch.
        inherit: whether the student's stem and first group start from the expert's,
            BatchNorm and its statistics included: the paper's CTKD-double-dagger
            (Table III), together with beta = 0.
        replay: whether the expert's logits, recorded while it learned, stand in for
            the scratch teacher's. With the same start, stream and recipe the scratch
            teacher retraces the expert, so that the student is the same at the price of
            KD.
    """

    num_teachers: ClassVar[int] = 1
    scratch: str = "wrn-40-1"
    hint_weight: float = 0.03
    beta: float = 1e3
    levels: tuple[str, ...] = ("stage1", "stage2", "stage3")
    power: float = 2.0
    norm: str = "mean_square"
    attention_target: str = "student"
    inherit: bool = False
    replay: bool = False

    def __post_init__(self) -> None:
        if self.replay and self.attention_target == "scratch":
            raise UserError(
                "ctkd: attention_target='scratch' moves the scratch teacher: no "
                "recording can stand in for it; scratch=joint trains it"
            )
        if self.attention_target not in _ATTENTION_TARGETS:
            raise unknown(
                "attention_target of ctkd", self.attention_target, _ATTENTION_TARGETS
            )

    def roles(self, student: str) -> dict[str, str]:
        """Returns the student and the scratch teacher, unless that is replayed."""
        if self.replay:
            return {"student": student}
        return {"student": student, "scratch": self.scratch}

    @property
    def replays(self) -> str | None:
        """Returns the scratch teacher's model, if it is replayed."""
        return self.scratch if self.replay else None

    def read(self, outputs: Outputs) -> Any:
        """Returns the expert's attention maps."""
        if not self.beta:
            return ()
        return attention_maps(outputs, self.levels, self.power)

    def initial(
        self, variables: dict[str, Variables], frozen: Mapping[str, Variables]
    ) -> dict[str, Variables]:
        """Returns the student with the expert's lower layers, if it inherits."""
        if not self.inherit:
            return variables
        _, expert = only(frozen)
        donor, student = flatten_dict(expert), flatten_dict(variables["student"])
        for path, leaf in student.items():
            if not path[1].startswith(_LOWER):
                continue
            if path not in donor or donor[path].shape != leaf.shape:
                raise UserError(
                    f"ctkd: the student cannot inherit {'/'.join(path)} {leaf.shape}: "
                    "the expert has no equal; it must be at least as deep and as wide"
                )
            student[path] = donor[path]
        return {**variables, "student": unflatten_dict(student)}

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the four terms of Eq. 4."""
        if self.replay:
            _, recorded = only(context.recorded)
            terms = {
                "ce/student": Term(cross_entropy(context, "student")),
                "hint/scratch": _hint(context, recorded, self.hint_weight),
            }
        else:
            terms = scratch_terms(context, self.hint_weight)
        if self.beta:
            expert, target = only(context.targets)
            guided = context.outputs[self.attention_target]
            maps = attention_maps(guided, self.levels, self.power)
            distance = attention_distance(maps, target, self.norm)
            terms[f"at/{expert}"] = Term(distance, self.beta)
        return terms
