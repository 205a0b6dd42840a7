"""Factor transfer: a paraphraser of the teacher's map, learned first."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax

from kdjax import losses
from kdjax.methods.base import Context, Path, Phase, Targets, Term, only
from kdjax.methods.connectors import Paraphraser, Translator
from kdjax.methods.levels import OneLevel, feature
from kdjax.methods.ranges import Count, Range
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError


class _Paraphrase(nn.Module):
    rate: float

    @nn.compact
    def __call__(
        self,
        outputs: Mapping[str, Outputs],
        targets: Mapping[str, Targets],
        train: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the teacher's factor and the reconstruction of its map."""
        del outputs, train
        return Paraphraser(self.rate, name="paraphraser")(only(targets)[1])


class _Translate(nn.Module):
    level: str
    channels: int

    @nn.compact
    def __call__(
        self,
        outputs: Mapping[str, Outputs],
        targets: Mapping[str, Targets],
        train: bool,
    ) -> jax.Array:
        """Returns the student's factor."""
        del targets
        x = feature(outputs["student"], self.level)
        return Translator(self.channels, name="translator")(x, train)


@dataclasses.dataclass(frozen=True)
class FT(OneLevel):
    """Factor transfer (Kim et al., 2018): CE + beta FT between factors of the last map.

    First phase: the paraphraser learns to reconstruct the teacher's map; the student
    does not. Second phase: student and translator learn, the paraphraser does not.

    Deviations: see `losses.factor_transfer`; weight, level and the first phase's epochs
    and learning rate are RepDistiller's for ResNets.

    Attributes:
        beta: the weight; 200 belongs to form 'map'.
        form: 'map', RepDistiller's: the factors' attention maps are compared; 'factor',
            the paper's: the factors are.
        p1: the exponent of the maps; not used with 'factor'.
        p2: the exponent of the differences.
        rate: the factor's width, as a share of the teacher's map.
        init_epochs: the epochs of the first phase, before the recipe's.
        init_learning_rate: of the first phase.
    """

    ADDED: ClassVar[tuple[str, ...]] = (*OneLevel.ADDED, "form", "p1", "p2")
    beta: float = 200.0
    rate: Annotated[float, Range(above=0, most=1)] = 0.5
    init_epochs: Count = 30
    init_learning_rate: float = 0.01
    form: Literal["map", "factor"] = "map"
    p1: Annotated[float, Range(above=1)] = 2.0
    p2: Annotated[float, Range(least=1)] = 1.0

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Targets]
    ) -> dict[str, nn.Module]:
        """Returns paraphraser and translator."""
        teacher, target = only(targets)
        channels = int(target.shape[-1] * self.rate)
        if not channels:
            raise UserError(f"ft: rate={self.rate} leaves no channel of {target.shape}")
        return {
            f"ft/{teacher}/paraphraser": _Paraphrase(self.rate),
            f"ft/{teacher}/translator": _Translate(self.level, channels),
        }

    def phases(self) -> tuple[Phase, ...]:
        """Returns the paraphraser's phase and the student's."""

        def paraphraser(path: Path) -> bool:
            name = path[0]
            return name.startswith("ft/") and name.endswith("/paraphraser")

        recipe = {
            "epochs": self.init_epochs,
            "milestones": (),
            "learning_rate": self.init_learning_rate,
        }
        return (
            Phase(recipe, paraphraser),
            Phase(trains=lambda path: not paraphraser(path)),
        )

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns the phase's terms."""
        if context.phase:
            return super().terms(context)
        teacher, target = only(context.targets)
        _, reconstruction = context.adapted[f"ft/{teacher}/paraphraser"]
        loss = losses.feature_mse(reconstruction, target)
        return {f"reconstruction/{teacher}": Term(loss)}

    def distances(self, context: Context) -> dict[str, Term]:
        """Returns the distance of the student's factor from the teacher's."""
        teacher, _ = only(context.targets)
        name = f"ft/{teacher}"
        factor, _ = context.adapted[f"{name}/paraphraser"]
        student = context.adapted[f"{name}/translator"]
        distance = losses.factor_transfer(
            student, factor, form=self.form, p1=self.p1, p2=self.p2
        )
        return {name: Term(distance, self.beta)}
