"""Contrastive representation distillation (CRD)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.losses import _safe
from kdjax.methods.base import Context, MemoryInit, Method, Term, cross_entropy, only
from kdjax.methods.levels import feature
from kdjax.models import Outputs
from kdjax.models.layers import torch_dense
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.rng import fold

_MODES = ("exact", "relax")
_SIDES = ("student", "teacher")


class Embeddings(nn.Module):
    """A dense layer on each network's pooled features, brought to length 1."""

    dimensions: int

    @nn.compact
    def __call__(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any], train: bool
    ) -> dict[str, jax.Array]:
        """Returns the embeddings, `[batch, dimensions]` by side."""
        del train
        _, target = only(targets)
        sides = {"student": feature(outputs["student"], "pooled"), "teacher": target}
        found = {}
        for side, x in sides.items():
            x = torch_dense(x.shape[-1], self.dimensions, side)(x)
            found[side] = _safe.normalise(x, 1e-12)
        return found


@dataclasses.dataclass(frozen=True)
class CRD(Method):
    """Contrastive representation distillation (Tian et al., 2020): CE + beta CRD.

    Each network's embedding is told apart from others' in a memory bank of the other
    network's: L(student; bank of teacher) + L(teacher; bank of student). Both banks are
    the memory: they are moved in the step, after the scores are taken, and saved.

    Deviations: see `losses.crd`; all defaults are the published code's.

    Attributes:
        beta: the weight.
        dimensions: of the embeddings.
        negatives: how many are drawn for each image, with replacement.
        temperature: of the scores.
        momentum: what is kept of a bank's entry.
        mode: 'exact': negatives of other classes; 'relax': any other image.
    """

    num_teachers: ClassVar[int] = 1
    beta: float = 0.8
    dimensions: int = 128
    negatives: int = 16384
    temperature: float = 0.07
    momentum: float = 0.5
    mode: str = "exact"

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise unknown("mode of crd", self.mode, _MODES)
        for name in ("dimensions", "negatives", "temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"crd: {name} {getattr(self, name)} is not positive")
        if not 0 <= self.momentum <= 1:
            raise UserError(f"crd: momentum {self.momentum} is outside 0..1")

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the pooled features."""
        return feature(outputs, "pooled")

    def adapters(
        self, outputs: Mapping[str, Outputs], targets: Mapping[str, Any]
    ) -> dict[str, nn.Module]:
        """Returns both embeddings' layers."""
        teacher, _ = only(targets)
        return {f"crd/{teacher}": Embeddings(self.dimensions)}

    def init_memory(self, init: MemoryInit) -> dict[str, Any]:
        """Returns random banks and constants that the first batch will set."""
        shape = len(init.labels), self.dimensions
        _, target = only(init.targets)
        dtype = jnp.promote_types(target.dtype, jnp.float32)
        bound = 1 / math.sqrt(self.dimensions / 3)
        memory: dict[str, Any] = {
            "banks": {
                side: jax.random.uniform(
                    fold(init.key, side), shape, dtype, -bound, bound
                )
                for side in _SIDES
            },
            "log_partition": dict.fromkeys(_SIDES, jnp.zeros((), dtype)),
            "started": jnp.zeros((), bool),
        }
        if self.mode == "exact":
            memory["classes"] = losses.class_order(
                init.labels, num_classes=init.num_classes
            )
        return memory

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and contrastive term."""
        return self.terms_and_memory(context)[0]

    def terms_and_memory(
        self, context: Context
    ) -> tuple[dict[str, Term], dict[str, Any]]:
        """Returns the terms, and the memory with the batch's embeddings in it."""
        teacher, _ = only(context.targets)
        name, memory = f"crd/{teacher}", context.memory
        embeddings, banks = context.adapted[name], memory["banks"]
        size = len(banks["student"])
        exact = self.mode == "exact"
        negatives = losses.draw_negatives(
            # Of the parts of a batch, each draws its own.
            fold(context.key, "negatives", context.index[0]),
            context.index,
            num_data=size,
            num_negatives=self.negatives,
            labels=context.labels if exact else None,
            classes=memory["classes"] if exact else None,
        )
        index = jnp.concatenate([context.index[:, None], negatives], axis=1)
        partitions, total = {}, jnp.zeros(len(index), banks["student"].dtype)
        for side, other in zip(_SIDES, reversed(_SIDES), strict=True):
            scores = losses.crd_scores(
                embeddings[side], banks[other], index, temperature=self.temperature
            )
            first = losses.crd_log_partition(
                jax.lax.stop_gradient(scores), num_data=size
            )
            log_partition = jnp.where(
                memory["started"], memory["log_partition"][side], first
            )
            partitions[side] = log_partition
            total += losses.crd(scores, num_data=size, log_partition=log_partition)
        moved = {
            side: losses.crd_update(
                bank,
                context.index,
                jax.lax.stop_gradient(embeddings[side]),
                momentum=self.momentum,
            )
            for side, bank in banks.items()
        }
        terms = {
            "ce/student": Term(cross_entropy(context, "student")),
            name: Term(total, self.beta),
        }
        new = {"banks": moved, "log_partition": partitions}
        return terms, {**memory, **new, "started": jnp.ones((), bool)}
