"""What every network returns, and what it consists of."""

from collections.abc import Mapping

import flax.struct
import jax


@flax.struct.dataclass
class Outputs:
    """The outputs of every network, always all of them; jit drops what is not used.

    Attributes:
        logits: `[batch, classes]`.
        features: named feature maps `[batch, height, width, channels]`: 'stem',
            'stage1', 'stage2', ..., the same before the activation that follows as
            'stage1_pre', ..., and 'pooled' `[batch, channels]`.
    """

    logits: jax.Array
    features: Mapping[str, jax.Array]


Variables = dict[str, dict]
"""The variables of one network: 'params' and, where it has any, 'batch_stats'."""
