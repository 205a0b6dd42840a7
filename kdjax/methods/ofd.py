"""Overhaul of feature distillation: partial distances beyond the teacher's margins."""

import dataclasses

import flax.linen as nn
import jax

from kdjax import losses, models
from kdjax.methods.base import Context, MemoryInit, Targets, only
from kdjax.methods.connectors import Connectors, OverhaulConnector
from kdjax.methods.levels import Maps, SeveralLevels, total
from kdjax.methods.ranges import Levels
from kdjax.runtime.errors import UserError


def _connector(shape: tuple[int, int, int], name: str) -> nn.Module:
    return OverhaulConnector(shape[-1], name=name)


@dataclasses.dataclass(frozen=True)
class OFD(SeveralLevels):
    """Overhaul of feature distillation (Heo et al., 2019): CE + beta sum_j w_j OFD_j.

    Maps before the activations, of any size and width: the student's through a 1x1
    convolution with BatchNorm, the larger of the two is pooled to the size of the
    smaller. The margins come from the teacher's BatchNorms, once, and are kept as the
    memory.

    Deviations: w = 2^(j - n) for level j of n, and beta = 1/1000, are the released
    code's. That code leaves the teacher in training mode, so that it normalises by each
    batch; here it is frozen.
    """

    beta: float = 1e-3
    levels: Levels = ("stage*_pre",)

    def adapter(self, target: Targets) -> nn.Module:
        """Returns the connectors."""
        return Connectors(self.levels, _connector)

    def init_memory(self, init: MemoryInit) -> dict[str, jax.Array]:
        """Returns the margins, `[channels]` by level."""
        teacher, frozen = only(init.frozen)
        name = init.models[teacher]
        norms = models.norms(name, init.num_classes)
        margins = {}
        for level, theirs in zip(self.levels, self.their_levels, strict=True):
            if theirs not in norms:
                known = f"choices: {', '.join(norms)}" if norms else "it has none"
                raise UserError(
                    f"ofd: {theirs} of {name!r} does not come from a known BatchNorm; "
                    f"{known}"
                )
            part = frozen["params"]
            for key in norms[theirs]:
                part = part[key]
            margins[level] = losses.ofd_margin(part["scale"], part["bias"])
        return margins

    def compare(self, context: Context, student: Maps, target: Maps) -> jax.Array:
        """Returns the sum over the levels, the deepest with weight 1."""
        values = []
        for i, level in enumerate(reversed(self.levels)):
            ours, theirs = losses.match_size(student[level], target[level])
            value = losses.ofd(ours, theirs, margin=context.memory[level])
            values.append(value / 2**i)
        return total(values)
