"""Made-up outputs of networks, and what a method's terms make of them."""

import jax
import jax.numpy as jnp
import numpy as np
from oracles import softened

from kdjax import methods
from kdjax.methods import Context
from kdjax.models import Outputs

B, C = 4, 6
LABELS = np.array([0, 3, 5, 1])


def outputs(seed, channels=2, size=4, rows=B):
    rng = np.random.default_rng(seed)
    features = {}
    for name in ("stem", "stage1", "stage2", "stage3"):
        features[name] = rng.normal(size=(rows, size, size, channels))
        features[f"{name}_pre"] = rng.normal(size=(rows, size, size, channels))
    features["pooled"] = rng.normal(size=(rows, channels))
    return Outputs(3 * rng.normal(size=(rows, C)), features)


STUDENT, PEER, THIRD, EXPERT = outputs(0), outputs(1), outputs(2), outputs(3, 3, 2)


def ce(logits, labels=LABELS):
    rows = [-np.log(softened(z)[y]) for z, y in zip(logits, labels, strict=True)]
    return np.mean(rows)


def mean(function, *arrays):
    return np.mean([function(*rows) for rows in zip(*arrays, strict=True)])


def terms(name, options=None, *, roles=None, step=0, teacher=EXPERT, **fields):
    """Values and weighted sum, as the step adds it up."""
    roles = roles or {"student": STUDENT}
    method = methods.create(name, {name: options or {}}).fit(roles, {"expert": teacher})
    rows = len(roles["student"].logits)
    targets = {}
    if method.num_teachers:
        targets = {"expert": method.teacher_targets(jax.tree.map(jnp.asarray, teacher))}
    context = Context(
        labels=jnp.asarray(np.repeat(LABELS, rows // B)),
        index=jnp.repeat(jnp.arange(B), rows // B),
        outputs=jax.tree.map(jnp.asarray, roles),
        targets=targets,
        recorded={},
        adapted=fields.pop("adapted", {}),
        step=jnp.int32(step),
        key=jax.random.key(0),
        **fields,
    )
    found, memory = method.terms_and_memory(context)
    total = 0.0
    for term in found.values():
        weight = term.weight(context.step) if callable(term.weight) else term.weight
        total += float(weight) * float(jnp.mean(term.value))
    return {n: float(jnp.mean(t.value)) for n, t in found.items()}, total, memory
