"""ONE: branches on a shared trunk that teach each other."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from kdjax import losses
from kdjax.methods.base import (
    Context,
    Method,
    Path,
    Targets,
    Term,
    cross_entropy,
    label_cross_entropy,
)
from kdjax.methods.levels import feature, shared_stages
from kdjax.methods.ranges import Positive, Range, Steps
from kdjax.models import Outputs
from kdjax.models.layers import torch_dense
from kdjax.models.norm import BatchNorm
from kdjax.runtime.errors import UserError


class Gate(nn.Module):
    """ONE's gate: the weight of each branch, from the trunk's pooled map.

    Average over the positions, a dense layer, BatchNorm and ReLU; the softmax that
    follows is in `losses.gated_logits`.
    """

    level: str
    branches: int

    @nn.compact
    def __call__(
        self,
        outputs: Mapping[str, Outputs],
        targets: Mapping[str, Targets],
        train: bool,
    ) -> jax.Array:
        """Returns scores of the branches, `[batch, branches]`."""
        del targets
        x = jnp.mean(feature(outputs["student"], self.level), axis=(1, 2))
        x = torch_dense(x.shape[-1], self.branches, "dense")(x)
        return nn.relu(BatchNorm(train, name="bn")(x))


@dataclasses.dataclass(frozen=True)
class ONE(Method):
    """On-the-fly native ensemble (Lan et al., 2018): branches on a shared trunk.

    L = sum_i CE(z_i) + CE(e) + w sum_i KL_i, e = sum_i g_i z_i: every branch learns
    from the labels and from the gated ensemble of all branches, which itself learns
    from the labels through its gate.

    A branch is a network of the student's model that shares the student's layers up to
    a level. The student is the first branch, and the one that is deployed. The trunk's
    output is computed once for all branches, its gradient for each of them.

    Deviations: eps in the target and the factor tau^2 are the released code's (see
    `losses.one`). Its weight rises as exp(-5 (1 - epoch/80)^2); a method knows steps,
    not epochs: `rampup_steps` is 80 times the steps of an epoch then.

    Attributes:
        branches: their number, the student included.
        trunk: the last level that the branches share; empty: the second to last.
        temperature: tau.
        weight: of the divergences.
        rampup_steps: the number of steps over which their weight rises; 0: none.
    """

    branches: Annotated[int, Range(least=2, most=100)] = 3
    trunk: str = ""
    temperature: Positive = 3.0
    weight: float = 1.0
    rampup_steps: Steps = 0

    def fit(
        self, outputs: Mapping[str, Outputs], teachers: Mapping[str, Outputs]
    ) -> Self:
        """Returns the method with its trunk by name."""
        if self.trunk:
            return self
        stages = shared_stages(self.NAME, (("stage*",), outputs["student"]))
        return dataclasses.replace(self, trunk=f"stage{stages[-2:][0]}")

    def roles(self, student: str) -> dict[str, str]:
        """Returns the branches, the student first."""
        others = {f"branch{i}": student for i in range(2, self.branches + 1)}
        return {"student": student, **others}

    def init_indices(self, init_index: int) -> dict[str, int]:
        """Returns different initial weights for every branch."""
        return {role: init_index + i for i, role in enumerate(self.roles(""))}

    def ties(self, params: Mapping[str, Mapping]) -> dict[Path, Path]:
        """Returns the branches' trunks, which are the student's."""
        paths = [path for path in flatten_dict(params["student"]) if self._shared(path)]
        if not paths:
            raise UserError(
                f"one: the student has no layers up to trunk={self.trunk!r}; choices: "
                "'stem', or a level such as 'stage2' of a network with layers of that "
                "name"
            )
        return {
            (role, *path): ("student", *path)
            for role in self.roles("")
            if role != "student"
            for path in paths
        }

    def _shared(self, path: Path) -> bool:
        part = path[0].split("_")[0]
        if part.startswith("stage"):
            return self.trunk.startswith("stage") and part <= self.trunk
        return part == "stem"

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Targets]
    ) -> dict[str, nn.Module]:
        """Returns the gate."""
        return {"one/gate": Gate(self.trunk, self.branches)}

    def _rampup(self, step: jax.Array) -> jax.Array:
        left = 1 - jnp.minimum(step / self.rampup_steps, 1.0)
        return self.weight * jnp.exp(-5 * left**2)

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns every branch's cross-entropy and divergence, and the ensemble's."""
        logits = {role: context.outputs[role].logits for role in self.roles("")}
        branches = jnp.stack(list(logits.values()))
        ensemble = losses.gated_logits(branches, context.adapted["one/gate"])
        # The ensemble and its gate learn from the labels alone, not from the branches.
        target = jax.lax.stop_gradient(ensemble)
        weight = self._rampup if self.rampup_steps else self.weight
        ce = label_cross_entropy(context, ensemble)
        terms = {"ce/ensemble": Term(ce)}
        for role, own in logits.items():
            terms[f"ce/{role}"] = Term(cross_entropy(context, role))
            divergence = losses.one(own, target, temperature=self.temperature)
            terms[f"one/{role}"] = Term(divergence, weight)
        return terms
