"""The outputs and the variables of every network."""

from collections.abc import Mapping

import flax.struct
import jax


@flax.struct.dataclass
class Outputs:
    """The outputs of every network; under jit, XLA removes those that are not used.

    Attributes:
        logits: `[batch, classes]`.
        features: named feature maps `[batch, height, width, channels]`: 'stem',
            'stage1', 'stage2', ..., their values before the activation as
            'stage1_pre', ..., and 'pooled' `[batch, channels]`.
    """

    logits: jax.Array
    features: Mapping[str, jax.Array]


Variables = dict[str, dict]
"""The variables of one network: 'params' and, where it has any, 'batch_stats'."""
