"""Deep mutual learning: networks that teach each other."""

import dataclasses

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.base import (
    Context,
    Method,
    Term,
    cross_entropy,
)
from kdjax.runtime.errors import UserError, unknown

_SUMS = ("sum", "mean")


def _check_count(method: str, what: str, count: int) -> None:
    if count < 1:
        raise UserError(f"{method}: {what} must be one or more, not {count}")


@dataclasses.dataclass(frozen=True)
class DML(Method):
    """Deep mutual learning (Zhang et al., 2018): networks that learn beside each other.

    L_i = CE_i + weight sum_{j != i} KL(p_j || p_i), each for network i alone: its
    peers' predictions are targets. Equal networks start apart.

    Deviations: the released code adds the terms of all peers, the default; the paper
    takes their mean for more than one (reduction='mean'). The paper moves the networks
    in turn, each after new predictions of the others; here all move at once.

    Attributes:
        peers: models of the further networks; 'student' is the student's.
        weight: of the divergences.
        reduction: over the peers, 'sum' or 'mean'.
    """

    peers: tuple[str, ...] = ("student",)
    weight: float = 1.0
    reduction: str = "sum"

    def __post_init__(self) -> None:
        _check_count("dml", "the number of peers", len(self.peers))
        if self.reduction not in _SUMS:
            raise unknown("reduction of dml", self.reduction, _SUMS)

    def roles(self, student: str) -> dict[str, str]:
        """Returns the student and its peers."""
        peers = {f"peer{i}": model for i, model in enumerate(self.peers, start=1)}
        return {
            "student": student,
            **{r: student if m == "student" else m for r, m in peers.items()},
        }

    def init_indices(self, init_index: int) -> dict[str, int]:
        """Returns another copy for every network."""
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
                    divergence += losses.mutual(own, jax.lax.stop_gradient(target))
            terms[f"dml/{role}"] = Term(divergence, weight)
        return terms
