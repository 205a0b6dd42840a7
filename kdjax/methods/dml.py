"""Deep mutual learning: networks that teach each other."""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.base import Context, Method, Term, cross_entropy
from kdjax.methods.ranges import Entries


@dataclasses.dataclass(frozen=True)
class DML(Method):
    """Deep mutual learning (Zhang et al., 2018): networks that learn together.

    L_i = CE_i + weight sum_{j != i} KL(p_j || p_i), each for network i alone: its
    peers' predictions are targets. Equal networks start from different weights.

    Deviations: the released code adds the terms of all peers, the default; the paper
    takes their mean for more than one (reduction='mean'). The paper updates the
    networks in turn, each after new predictions of the others; here all are updated at
    once.

    Attributes:
        peers: the models of the other networks; 'student' means the student's model.
        weight: of the divergences.
        reduction: over the peers, 'sum' or 'mean'.
    """

    peers: Annotated[tuple[str, ...], Entries(1)] = ("student",)
    weight: float = 1.0
    reduction: Literal["sum", "mean"] = "sum"

    def roles(self, student: str) -> dict[str, str]:
        """Returns the student and its peers."""
        peers = {f"peer{i}": model for i, model in enumerate(self.peers, start=1)}
        return {
            "student": student,
            **{r: student if m == "student" else m for r, m in peers.items()},
        }

    def init_indices(self, init_index: int) -> dict[str, int]:
        """Returns different initial weights for every network."""
        return {role: init_index + i for i, role in enumerate(self.roles(""))}

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns every network's cross-entropy and divergence from its peers."""
        logits = {role: context.outputs[role].logits for role in self.roles("")}
        weight = self.weight
        if self.reduction == "mean":
            weight /= len(self.peers)
        terms = {}
        for role, own in logits.items():
            terms[f"ce/{role}"] = Term(cross_entropy(context, role))
            divergence = jnp.zeros(len(own), own.dtype)
            for peer, target in logits.items():
                if peer != role:
                    # A peer is a target here: it gets no gradient from this term.
                    divergence += losses.mutual(own, jax.lax.stop_gradient(target))
            terms[f"dml/{role}"] = Term(divergence, weight)
        return terms
