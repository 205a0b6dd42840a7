"""Contrastive representation distillation (CRD)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal, NotRequired, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.base import Context, MemoryInit, Targets, Term, only
from kdjax.methods.comparison import Comparison
from kdjax.methods.levels import feature
from kdjax.methods.ranges import Count, Positive, Share
from kdjax.models import Outputs
from kdjax.models.layers import torch_dense
from kdjax.runtime.rng import fold

_SIDES = ("student", "teacher")


class ContrastiveMemory(TypedDict):
    """CRD's memory between the steps.

    Attributes:
        banks: embeddings of the training set, `[N, dimensions]` by side.
        log_partition: constants, by side; see `losses.crd_log_partition`.
        started: whether the first batch has set the constants.
        classes: `losses.class_order` of the training set; only in mode 'exact'.
    """

    banks: dict[str, jax.Array]
    log_partition: dict[str, jax.Array]
    started: jax.Array
    classes: NotRequired[tuple[jax.Array, jax.Array]]


class Embeddings(nn.Module):
    """A dense layer on each network's pooled features, normalised to length 1."""

    dimensions: int

    @nn.compact
    def __call__(
        self,
        outputs: Mapping[str, Outputs],
        targets: Mapping[str, Targets],
        train: bool,
    ) -> dict[str, jax.Array]:
        """Returns the embeddings, `[batch, dimensions]` by side."""
        del train
        _, target = only(targets)
        sides = {"student": feature(outputs["student"], "pooled"), "teacher": target}
        embeddings = {}
        for side, x in sides.items():
            x = torch_dense(x.shape[-1], self.dimensions, side)(x)
            embeddings[side] = losses.unit_length(x)
        return embeddings


@dataclasses.dataclass(frozen=True)
class CRD(Comparison):
    """Contrastive representation distillation (Tian et al., 2020): CE + beta CRD.

    Each network's embedding is contrasted with those in a memory bank of the other
    network: L(student; bank of teacher) + L(teacher; bank of student). Both banks are
    the method's memory: the step updates them after it has computed the scores.

    Deviations: see `losses.crd`; all defaults are the published code's.

    Attributes:
        beta: the weight.
        dimensions: the embeddings' size.
        negatives: how many are sampled for each image, with replacement.
        temperature: of the scores.
        momentum: the share of a bank's entry that an update keeps.
        mode: 'exact': negatives of other classes; 'relax': any other image.
    """

    reads_labels: ClassVar[bool] = True
    beta: float = 0.8
    dimensions: Count = 128
    negatives: Count = 16384
    temperature: Positive = 0.07
    momentum: Share = 0.5
    mode: Literal["exact", "relax"] = "exact"

    def teacher_targets(self, outputs: Outputs) -> jax.Array:
        """Returns the pooled features."""
        return feature(outputs, "pooled")

    def adapter(self, target: Targets) -> nn.Module:
        """Returns both embeddings' layers."""
        return Embeddings(self.dimensions)

    def init_memory(self, init: MemoryInit) -> ContrastiveMemory:
        """Returns random banks and constants that the first batch will set."""
        shape = len(init.labels), self.dimensions
        _, target = only(init.targets)
        dtype = jnp.promote_types(target.dtype, jnp.float32)
        bound = 1 / math.sqrt(self.dimensions / 3)
        memory: ContrastiveMemory = {
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

    def sample_negatives(
        self,
        key: jax.Array,
        index: jax.Array,
        labels: jax.Array,
        memory: ContrastiveMemory,
    ) -> jax.Array:
        """Samples the images that each embedding is contrasted with.

        Args:
            key: the random key of this step.
            index: `[batch]` positions in the training set.
            labels: `[batch]` integers.
            memory: the method's; only the banks' size and the classes are used.

        Returns:
            Positions in the training set, `[batch, negatives]`.
        """
        exact = self.mode == "exact"
        return losses.draw_negatives(
            key,
            index,
            num_data=len(memory["banks"]["student"]),
            num_negatives=self.negatives,
            labels=labels if exact else None,
            classes=memory["classes"] if exact else None,
        )

    def terms(self, context: Context) -> dict[str, Term]:
        """Returns cross-entropy and contrastive term."""
        return self.terms_and_memory(context)[0]

    def terms_and_memory(
        self, context: Context
    ) -> tuple[dict[str, Term], ContrastiveMemory]:
        """Returns the terms, and the memory with the batch's embeddings in it."""
        teacher, _ = only(context.targets)
        name = f"crd/{teacher}"
        memory: ContrastiveMemory = context.memory
        embeddings, banks = context.adapted[name], memory["banks"]
        size = len(banks["student"])
        # The first position keeps the micro-batches of one step, which share the step's
        # key, from sampling the same negatives.
        key = fold(context.key, "negatives", context.index[0])
        negatives = self.sample_negatives(key, context.index, context.labels, memory)
        # `losses.crd` expects the positive first.
        index = jnp.concatenate([context.index[:, None], negatives], axis=1)
        partitions, total = {}, jnp.zeros(len(index), banks["student"].dtype)
        for side, other in zip(_SIDES, reversed(_SIDES), strict=True):
            scores = losses.crd_scores(
                embeddings[side], banks[other], index, temperature=self.temperature
            )
            # Set by the first batch and kept: a constant, with no gradient.
            first = losses.crd_log_partition(
                jax.lax.stop_gradient(scores), num_data=size
            )
            log_partition = jnp.where(
                memory["started"], memory["log_partition"][side], first
            )
            partitions[side] = log_partition
            total += losses.crd(scores, num_data=size, log_partition=log_partition)
        # After the scores: an image is never compared with its own new entry.
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
            "ce/student": self.label_term(context),
            name: Term(total, self.beta),
        }
        started = jnp.ones((), bool)
        return terms, {
            **memory,
            "banks": moved,
            "log_partition": partitions,
            "started": started,
        }
