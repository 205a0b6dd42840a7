"""CTKD: a scratch teacher beside the student, and an expert's attention."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax.methods.at import AT
from kdjax.methods.base import Context, Method, Term, only
from kdjax.methods.levels import check_pairs
from kdjax.methods.ranges import Levels, Range, TeacherLevels
from kdjax.methods.rocket import LOWER, hint, scratch_terms
from kdjax.models import Outputs, Variables
from kdjax.runtime.errors import UserError


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
        levels: the features whose attention is compared, as of `AT`.
        teacher_levels: the expert's, where they differ.
        attention_target: which network the expert's attention guides, 'student' or
            'scratch'.
        inherit: whether the student's stem and first group start from the expert's,
            BatchNorm and its statistics included: the paper's CTKD-double-dagger
            (Table III), together with beta = 0.
        replay: whether the expert's logits, recorded while it was trained, replace the
            scratch teacher's. With the same start, data stream and recipe the scratch
            teacher repeats the expert's training, so the student is the same, at the
            cost of KD.
    """

    ADDED: ClassVar[tuple[str, ...]] = ("teacher_levels",)
    num_teachers: ClassVar[int | None] = 1
    scratch: str = "wrn-40-1"
    hint_weight: float = 0.03
    beta: float = 1e3
    levels: Levels = ("stage*",)
    teacher_levels: TeacherLevels = dataclasses.field(default=(), kw_only=True)
    power: Annotated[float, Range(above=1)] = 2.0
    norm: Literal["mean_square", "l2"] = "mean_square"
    attention_target: Literal["student", "scratch"] = "student"
    inherit: bool = False
    replay: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pairs(self.NAME, self.levels, self.teacher_levels)
        if self.replay and self.attention_target == "scratch":
            raise UserError(
                "ctkd: attention_target='scratch' moves the scratch teacher: no "
                "recording can stand in for it; scratch=joint trains it"
            )

    @property
    def attention(self) -> AT:
        """The attention term."""
        return AT(
            levels=self.levels,
            teacher_levels=self.teacher_levels,
            power=self.power,
            norm=self.norm,
        )

    def fit(
        self, outputs: Mapping[str, Outputs], teachers: Mapping[str, Outputs]
    ) -> Self:
        """Returns the method with its levels by name."""
        if not self.beta and self.levels == ("stage*",):
            # Not used, but part of the fingerprints of earlier versions in this form.
            return dataclasses.replace(self, levels=("stage1", "stage2", "stage3"))
        guided = {"student": outputs[self.attention_target]}
        fitted = self.attention.fit(guided, teachers)
        return dataclasses.replace(
            self, levels=fitted.levels, teacher_levels=fitted.teacher_levels
        )

    def roles(self, student: str) -> dict[str, str]:
        """Returns the student and, unless it is replayed, the scratch teacher."""
        if self.replay:
            return {"student": student}
        return {"student": student, "scratch": self.scratch}

    @property
    def replays(self) -> str | None:
        """Returns the scratch teacher's model, if it is replayed."""
        return self.scratch if self.replay else None

    def teacher_targets(self, outputs: Outputs) -> dict[str, jax.Array] | tuple[()]:
        """Returns the expert's attention maps, if they are used."""
        if not self.beta:
            return ()
        return self.attention.teacher_targets(outputs)

    def initial(
        self, variables: dict[str, Variables], frozen: Mapping[str, Variables]
    ) -> dict[str, Variables]:
        """Returns the student with the expert's lower layers, if it inherits."""
        if not self.inherit:
            return variables
        _, expert = only(frozen)
        donor, student = flatten_dict(expert), flatten_dict(variables["student"])
        lower = [path for path in student if path[1].startswith(LOWER)]
        if not lower:
            raise UserError(
                "ctkd: inherit=True copies nothing: the student has no layer named "
                f"{' or '.join(f'{prefix}...' for prefix in LOWER)}, only "
                f"{', '.join(variables['student']['params'])}; choices: networks such "
                "as wrn-16-1"
            )
        for path in lower:
            leaf = student[path]
            if path not in donor or donor[path].shape != leaf.shape:
                raise UserError(
                    f"ctkd: the student cannot inherit {'/'.join(path)} {leaf.shape}: "
                    "the expert has no such layer; it must be at least as deep and "
                    "as wide"
                )
            student[path] = donor[path]
        return {**variables, "student": unflatten_dict(student)}

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns the terms of Eq. 4 except for the student's cross-entropy."""
        if self.replay:
            _, recorded = only(context.recorded)
            terms = {"hint/scratch": hint(context, recorded, self.hint_weight)}
        else:
            terms = scratch_terms(context, self.hint_weight)
        if self.beta:
            expert, target = only(context.targets)
            guided = context.outputs[self.attention_target]
            maps = self.attention.student_features(guided)
            distance = self.attention.compare(context, maps, target)
            terms[f"at/{expert}"] = Term(distance, self.beta)
        return terms
