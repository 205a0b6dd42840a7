"""Contrastive representation distillation (CRD) with a memory bank.

The bank itself, an array [num_data, dimensions] of unit vectors, is the caller's. A
step of CRD, for the student's side; the teacher's is the same with the roles changed:

    index = jnp.concatenate([batch_index[:, None], negatives], axis=1)
    scores = crd_scores(student_embedding, teacher_bank, index)
    loss = crd(scores, num_data=num_data, log_partition=log_partition).mean()
    teacher_bank = crd_update(teacher_bank, batch_index, teacher_embedding)

None of these functions stops a gradient.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import _checks, _safe


def unit_length(embedding: ArrayLike) -> jax.Array:
    """Embeddings of length 1, as the scores and the banks of CRD take them.

    `e / max(||e||_2, 1e-12)`; no gradient where the embedding is shorter than that

    Args:
        embedding: [batch, dimensions].

    Returns:
        [batch, dimensions], in the embedding's dtype.

    Raises:
        ValueError: if the rank is not 2.

    Reference:
        Tian, Krishnan and Isola (see `crd`); the published code's `Normalize`.

    **Deviations**: The published code has no 1e-12. Unlike the losses, this keeps the
    dtype of a bfloat16 embedding: `crd_scores` promotes it.
    """
    embedding = jnp.asarray(embedding)
    _checks.rank("embedding", embedding, ("batch", "dimensions"))
    return _safe.normalise(embedding, 1e-12)


def crd_scores(
    anchor: ArrayLike,
    bank: ArrayLike,
    index: ArrayLike,
    *,
    temperature: float | jax.Array = 0.07,
) -> jax.Array:
    """Similarities of embeddings to some entries of a memory bank.

    `s_bk = anchor_b . bank[index_bk] / tau`

    One matrix product scores the whole bank, and the chosen scores are gathered: with
    16,384 negatives the chosen vectors would take orders of magnitude more memory.

    Args:
        anchor: embeddings of length 1, [batch, dimensions].
        bank: the other network's embeddings, [num_data, dimensions].
        index: entries of the bank, integers, the positive's first,
            [batch, 1 + negatives].
        temperature: tau, a positive scalar.

    Returns:
        Scores, [batch, 1 + negatives].

    Raises:
        ValueError: if the shapes do not fit, the index is not of integers, or the
            temperature is not positive.

    Reference:
        Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR
        2020, the exponent of Eq. 19.
    """
    shape, rows, index = jnp.shape(anchor), jnp.shape(bank), jnp.asarray(index)
    if len(shape) != 2 or len(rows) != 2 or shape[1] != rows[1]:
        raise ValueError(
            f"anchor {shape} and bank {rows} must be [batch, dimensions] and "
            "[num_data, dimensions]"
        )
    _checks.positions("index", index, shape[:1], rank=2)
    _checks.above("temperature", temperature, 0)
    anchor, bank = _checks.promote(anchor, bank)
    # [B, D] @ [D, N] -> [B, N] -> [B, 1 + negatives]
    return jnp.take_along_axis(anchor @ bank.T, index, axis=1) / temperature


def crd_log_partition(scores: ArrayLike, *, num_data: int) -> jax.Array:
    """Log of Z, a constant set by the first batch: N times the mean of exp(scores).

    `log Z = log(mean_bk exp(s_bk) * N)`

    Args:
        scores: of the first batch, positives included, [batch, 1 + negatives].
        num_data: N, the number of entries of the bank.

    Returns:
        A scalar.

    Raises:
        ValueError: if the shape is another or num_data not positive.

    Reference:
        The published code of Tian, Krishnan and Isola (RepDistiller), after Wu et
        al., "Unsupervised Feature Learning via Non-Parametric Instance
        Discrimination", CVPR 2018; the CRD paper has no such constant.
    """
    scores = _scores(scores, num_data)
    return jax.nn.logsumexp(scores) - math.log(scores.size) + math.log(num_data)


def crd(
    scores: ArrayLike,
    *,
    num_data: int,
    log_partition: float | jax.Array = 0.0,
    eps: float = 1e-7,
) -> jax.Array:
    """Contrastive representation distillation, of one network as the anchor.

    `h_k = exp(s_k) / Z`, `c = negatives / N`,
    `loss = -log(h_0 / (h_0 + c + eps)) - sum_{k >= 1} log(c / (h_k + c + eps))`

    Args:
        scores: see `crd_scores`, the positive first, [batch, 1 + negatives].
        num_data: N, the number of examples that negatives are sampled from.
        log_partition: log Z, a constant, see `crd_log_partition`.
        eps: added to the denominators, 0 or more.

    Returns:
        One value per example, [batch]. The method adds the loss of the teacher as the
        anchor.

    Raises:
        ValueError: if there is no negative, num_data is not positive or eps negative.

    Reference:
        Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR
        2020, Eq. 19.

    **Deviations**: The paper has neither Z nor eps, and one critic; the published
    code has both and adds two directions, the student's and the teacher's embedding
    as the anchor against the other's bank.
    """
    scores = _scores(scores, num_data)
    negatives = scores.shape[1] - 1
    if negatives < 1:
        raise ValueError(f"scores {scores.shape} must have one negative or more")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a finite number from 0, not {eps}")
    share = negatives / num_data
    log_h = scores - log_partition
    # In logarithms: exp(1 / 0.07) is large, and its quotients round to 1.
    floor = math.log(share + eps)
    # -log(h / (h + c + eps)) = softplus(log(c + eps) - log h)
    positive = jax.nn.softplus(floor - log_h[:, 0])
    others = jnp.logaddexp(log_h[:, 1:], floor) - math.log(share)
    return positive + jnp.sum(others, axis=-1)


def crd_update(
    bank: ArrayLike,
    index: ArrayLike,
    embedding: ArrayLike,
    *,
    momentum: float | jax.Array = 0.5,
) -> jax.Array:
    """The memory bank after a batch: a moving average, normalised to length 1.

    `m = momentum * bank[index] + (1 - momentum) * embedding, bank[index] = m / ||m||`

    Args:
        bank: embeddings, [num_data, dimensions].
        index: the batch's entries, each once, integers, [batch].
        embedding: the batch's new embeddings, [batch, dimensions].
        momentum: the share of the old entry, a scalar.

    Returns:
        The new bank, [num_data, dimensions], in the bank's dtype.

    Raises:
        ValueError: if the shapes do not fit or the index is not of integers.

    Reference:
        Tian, Krishnan and Isola (see `crd`), after Wu et al., 2018.

    **Deviations**: The published code updates after the scores are taken, as the
    module's example does. A mean of length 0, which has no direction, stays 0.
    """
    bank, rows, index = jnp.asarray(bank), jnp.shape(embedding), jnp.asarray(index)
    if bank.ndim != 2 or len(rows) != 2 or bank.shape[1] != rows[1]:
        raise ValueError(
            f"bank {bank.shape} and embedding {rows} must be [num_data, dimensions] "
            "and [batch, dimensions]"
        )
    _checks.positions("index", index, rows[:1], rank=1)
    old, new = _checks.promote(bank[index], embedding)
    mean = momentum * old + (1 - momentum) * new
    mean = _safe.normalise(mean, 1e-12)
    return bank.at[index].set(mean.astype(bank.dtype))


def class_order(labels: ArrayLike, *, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """A data set's examples sorted by class, for `draw_negatives`.

    Args:
        labels: of the whole data set, integers, [num_data].
        num_classes: the number of classes.

    Returns:
        The examples sorted by class, [num_data], and the first position of each class
        in that order, with num_data at the end, [classes + 1].

    Raises:
        ValueError: if the labels are not integers of one axis.
    """
    labels = jnp.asarray(labels)
    _checks.positions("labels", labels, labels.shape[:1], rank=1)
    order = jnp.argsort(labels, stable=True)
    # The first position of a class is the number of smaller labels.
    starts = jnp.searchsorted(labels[order], jnp.arange(num_classes + 1))
    return order, starts


def draw_negatives(
    key: jax.Array,
    index: ArrayLike,
    *,
    num_data: int,
    num_negatives: int,
    labels: ArrayLike | None = None,
    classes: tuple[ArrayLike, ArrayLike] | None = None,
) -> jax.Array:
    """Samples negatives for each example, uniformly and with replacement.

    Without labels, negatives are any examples but the example itself ('relax'); with
    labels, only examples of other classes ('exact').

    Args:
        key: a random key.
        index: the batch's positions in the data set, integers, [batch].
        num_data: the number of examples, two or more.
        num_negatives: how many to sample for each.
        labels: the batch's class numbers, integers, [batch]; None for 'relax'.
        classes: the result of `class_order` for the data set, which must have two or
            more classes; given together with labels.

    Returns:
        Positions in the data set, [batch, num_negatives].

    Raises:
        ValueError: if shapes do not fit, there is one example only, or labels come
            without classes or classes without labels.

    Reference:
        Tian, Krishnan and Isola (see `crd`), and the modes of the published
        code.

    **Deviations**: The published data set draws without replacement where the other
    classes have enough examples; each negative has the same distribution.
    """
    index = jnp.asarray(index)
    _checks.positions("index", index, index.shape[:1], rank=1)
    if num_data < 2:
        raise ValueError(f"num_data must be 2 or more, not {num_data}")
    if (labels is None) != (classes is None):
        raise ValueError("labels and classes must be given together")
    shape = (len(index), num_negatives)
    if labels is None or classes is None:
        drawn = jax.random.randint(key, shape, 0, num_data - 1)
        # Uniform over the other num_data - 1 examples: skips the example itself.
        return drawn + (drawn >= index[:, None])
    labels = jnp.asarray(labels)
    _checks.positions("labels", labels, index.shape, rank=1)
    order, starts = map(jnp.asarray, classes)
    # [B, 1]: where the own class begins in the sorted order, and how large it is.
    first, size = (
        starts[labels][:, None],
        (starts[labels + 1] - starts[labels])[:, None],
    )
    # Uniform over the examples of other classes: skips the own class as a block.
    drawn = jax.random.randint(key, shape, 0, num_data - size)
    return order[jnp.where(drawn >= first, drawn + size, drawn)]


def _scores(scores: ArrayLike, num_data: int) -> jax.Array:
    shape = jnp.shape(scores)
    if len(shape) != 2:
        raise ValueError(f"scores {shape} must be [batch, 1 + negatives]")
    if num_data < 1:
        raise ValueError(f"num_data must be 1 or more, not {num_data}")
    return _checks.promote(scores)[0]
