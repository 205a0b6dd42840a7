"""The terms and weights of every method against NumPy, on made-up outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    np_correlation,
    np_dist,
    np_nkd,
    np_pkt,
    np_rkd_angle,
    np_rkd_distance,
    np_similarity,
    np_wttm,
)

from kdjax import methods
from kdjax.methods import Context, Term
from kdjax.methods.fitnet import Regressor
from kdjax.models import Outputs
from kdjax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("x64")


BATCH, CLASSES = 4, 6


LABELS = np.array([0, 3, 5, 1])


def outputs(seed, channels=2):
    rng = np.random.default_rng(seed)
    shape = (BATCH, 8, 8, channels)
    features = {f"stage{i}": rng.normal(size=shape) for i in (1, 2, 3)}
    features["pooled"] = rng.normal(size=(BATCH, channels))
    return Outputs(3 * rng.normal(size=(BATCH, CLASSES)), features)


STUDENT, SCRATCH, EXPERT = outputs(0), outputs(1), outputs(2, channels=3)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def ce(output):
    return -log_softmax(np.asarray(output.logits))[np.arange(BATCH), LABELS].mean()


def soft(temperature=4.0, kl=True, prepare=np.asarray):
    s = log_softmax(prepare(STUDENT.logits) / temperature)
    t = log_softmax(prepare(EXPERT.logits) / temperature)
    cross = -(np.exp(t) * s).sum(axis=1).mean()
    entropy = -(np.exp(t) * t).sum(axis=1).mean()
    return temperature**2 * (cross - entropy) if kl else cross


def hint():
    difference = np.asarray(STUDENT.logits) - np.asarray(SCRATCH.logits)
    return (difference**2).sum() / BATCH


def attention(output=STUDENT, norm="mean_square"):
    total = 0.0
    for level in ("stage1", "stage2", "stage3"):
        maps = []
        for features in (output.features[level], EXPERT.features[level]):
            q = (np.asarray(features) ** 2).sum(axis=3).reshape(BATCH, -1)
            maps.append(q / np.sqrt((q**2).sum(axis=1, keepdims=True)))
        square = (maps[0] - maps[1]) ** 2
        if norm == "l2":
            total += np.sqrt(square.sum(axis=1)).mean()
        else:
            total += square.mean()
    return total


def standardised(logits):
    z = np.asarray(logits)
    return (z - z.mean(1, keepdims=True)) / (1e-7 + z.std(1, ddof=1, keepdims=True))


def dkd():
    """TCKD + 8 NCKD at temperature 4."""
    rows, total = np.arange(BATCH), 0.0
    s, t = (np.exp(log_softmax(np.asarray(x.logits) / 4)) for x in (STUDENT, EXPERT))
    own = [np.stack([p[rows, LABELS], 1 - p[rows, LABELS]], 1) for p in (s, t)]
    for p in (s, t):
        p[rows, LABELS] = 0
    rest = [p / p.sum(1, keepdims=True) for p in (s, t)]
    for weight, (p, q) in ((1, own), (8, rest)):
        some = (p > 0) & (q > 0)
        total += weight * (q[some] * np.log(q[some] / p[some])).sum()
    return 16 * total / BATCH


def nkd(temperature=3.0, gamma=3.5):
    pairs = zip(STUDENT.logits, EXPERT.logits, LABELS, strict=True)
    return np.mean([np_nkd(s, t, temperature, gamma, y) for s, t, y in pairs])


def wttm(power):
    pairs = zip(STUDENT.logits, EXPERT.logits, strict=True)
    return np.mean([np_wttm(s, t, power) for s, t in pairs])


def smoothed():
    """Cross-entropy with 0.9 of the label and 0.1 of the mean over classes."""
    return 0.9 * ce(STUDENT) - 0.1 * log_softmax(np.asarray(STUDENT.logits)).mean()


def pooled():
    return STUDENT.features["pooled"], EXPERT.features["pooled"]


def stage3():
    return STUDENT.features["stage3"], EXPERT.features["stage3"]


EMBEDDED = np.random.default_rng(3).normal(size=(2, BATCH, 5))


def adapted(expert):
    """What the adapters are made to say: 0.5 off everywhere."""
    maps = {level: x + 0.5 for level, x in expert.features.items()}
    unit = jnp.log(jnp.expm1(jnp.full(3, 1 - 1e-5)))  # a variance of 1
    return {
        "fitnet/expert": maps["stage2"],
        "vid/expert": {level: (x, unit) for level, x in maps.items()},
        "reviewkd/expert": maps,
        "cc/expert": tuple(jnp.asarray(EMBEDDED)),
    }


def nst():
    total = 0.0
    for level in ("stage1", "stage2", "stage3"):
        for i in range(BATCH):
            s, t = (
                np.asarray(output.features[level])[i].reshape(64, -1)
                for output in (STUDENT, EXPERT)
            )
            s, t = (x / np.sqrt((x**2).sum(axis=0)) for x in (s, t))
            means = [((a.T @ b) ** 2).mean() for a, b in ((s, s), (t, t), (s, t))]
            total += means[0] + means[1] - 2 * means[2]
    return total / BATCH


def loss_of(name, options=None, step=0):
    """The weighted sum, as the step adds it up."""
    method = methods.create(name, options or {})
    student, scratch, expert = jax.tree.map(jnp.asarray, (STUDENT, SCRATCH, EXPERT))
    roles = {"student": student, "scratch": scratch}
    method = method.fit(roles, {"expert": expert})
    targets = (
        {} if method.num_teachers == 0 else {"expert": method.teacher_targets(expert)}
    )
    context = Context(
        labels=jnp.asarray(LABELS),
        index=jnp.arange(BATCH),
        outputs={role: roles[role] for role in method.roles("wrn-16-1")},
        targets=targets,
        recorded={},
        adapted=adapted(expert),
        step=jnp.int32(step),
        key=jax.random.key(0),
    )
    total = 0.0
    for term in method.terms(context).values():
        weight = term.weight(context.step) if callable(term.weight) else term.weight
        total += float(weight) * float(jnp.mean(term.value))
    return total


FREE = {"rocket": {"tied": "none"}}


BOTH = ce(STUDENT) + ce(SCRATCH) + 0.03 * hint()


CASES = {
    "supervised": ("supervised", {}, ce(STUDENT)),
    "kd": ("kd", {}, 0.1 * ce(STUDENT) + 0.9 * soft()),
    "kd, Eq. 1": ("kd", {"kd": {"form": "added"}}, ce(STUDENT) + 0.9 * soft(kl=False)),
    "kd, standardised": (
        "kd",
        {"kd": {"standardise": True, "temperature": 2.0}},
        0.1 * ce(STUDENT) + 0.9 * soft(2.0, prepare=standardised),
    ),
    "dgkd, standardised": (
        "dgkd",
        {"dgkd": {"standardise": True}},
        0.3 * ce(STUDENT) + 0.7 * soft(5.0, prepare=standardised),
    ),
    "label_smoothing": ("label_smoothing", {}, smoothed()),
    "dkd": ("dkd", {}, ce(STUDENT) + dkd()),
    "dist": (
        "dist",
        {},
        ce(STUDENT)
        + np_dist(np.asarray(STUDENT.logits), np.asarray(EXPERT.logits), 4.0, 2.0, 2.0),
    ),
    "nkd": ("nkd", {}, ce(STUDENT) + nkd()),
    "nkd, as for ImageNet": (
        "nkd",
        {"nkd": {"temperature": 1.0, "gamma": 1.5}},
        ce(STUDENT) + nkd(1.0, 1.5),
    ),
    "wttm": ("wttm", {}, ce(STUDENT) + 4 * wttm(0.2)),
    "wttm, other": (
        "wttm",
        {"wttm": {"power": 0.5, "beta": 9.0}},
        ce(STUDENT) + 9 * wttm(0.5),
    ),
    "sp": ("sp", {}, ce(STUDENT) + 3000 * np_similarity(*stage3())),
    "cc, paper's kernel": (
        "cc",
        {"cc": {"form": "kernel", "gamma": 0.3, "order": 3, "beta": 2.0}},
        ce(STUDENT)
        + 2
        * np_correlation(
            *(x / np.linalg.norm(x, axis=1, keepdims=True) for x in EMBEDDED),
            form="kernel",
            gamma=0.3,
            order=3,
        ),
    ),
    "cc": ("cc", {}, ce(STUDENT) + 0.02 * np_correlation(*EMBEDDED)),
    "rkd": (
        "rkd",
        {},
        ce(STUDENT) + 25 * np_rkd_distance(*pooled()) + 50 * np_rkd_angle(*pooled()),
    ),
    "pkt": ("pkt", {}, ce(STUDENT) + 3e4 * np_pkt(*pooled())),
    "sp+rkd": (
        "sp+rkd",
        {"rkd": {"angle": 0.0}},
        ce(STUDENT) + 3000 * np_similarity(*stage3()) + 25 * np_rkd_distance(*pooled()),
    ),
    "at": ("at", {}, ce(STUDENT) + 1e3 * attention()),
    "at, paper's norm": (
        "at",
        {"at": {"norm": "l2", "beta": 2.0}},
        ce(STUDENT) + 2 * attention(norm="l2"),
    ),
    # The adapters' outputs above are 0.5 off everywhere.
    "fitnet": ("fitnet", {}, ce(STUDENT) + 100 * 0.25),
    "rocket": ("rocket", {}, BOTH),
    "rocket+kd": ("rocket+kd", {}, BOTH + soft()),
    "kd+rocket": ("kd+rocket", {}, BOTH - 0.9 * ce(STUDENT) + 0.9 * soft()),
    "rocket+kd, weighted": (
        "rocket+kd",
        {"kd": {"alpha": 0.4}},
        BOTH + 0.4 * soft(),
    ),
    "rocket+fitnet": ("rocket+fitnet", FREE, BOTH + 100 * 0.25),
    "ctkd": ("ctkd", {}, BOTH + 1e3 * attention()),
    "rocket+at": ("rocket+at", FREE, BOTH + 1e3 * attention()),
    "ctkd, released code": (
        "ctkd",
        {"ctkd": {"attention_target": "scratch"}},
        BOTH + 1e3 * attention(SCRATCH),
    ),
    "ctkd, double dagger": ("ctkd", {"ctkd": {"beta": 0.0, "inherit": True}}, BOTH),
    "nst": ("nst", {}, ce(STUDENT) + 50 * nst()),
    "vid": ("vid", {}, ce(STUDENT) + 3 * 0.125),
    "reviewkd": (
        "reviewkd",
        {"reviewkd": {"levels": ("stage1", "stage3"), "beta": 2.0}},
        ce(STUDENT) + 2 * 2 * 0.25,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_the_formula(case):
    name, options, expected = CASES[case]
    np.testing.assert_allclose(loss_of(name, options), expected, rtol=1e-9)


def test_the_weight_of_dkd_warms_up():
    options = {"dkd": {"warmup_steps": 4}}
    for step, share in ((0, 0), (1, 0.25), (4, 1), (9, 1)):
        found = loss_of("dkd", options, step)
        np.testing.assert_allclose(found, ce(STUDENT) + share * dkd(), rtol=1e-9)


def test_the_sum_weighs_masks_and_follows_schedules():
    value, mask = jnp.array([1.0, 2.0, 6.0]), jnp.array([1.0, 0.0, 1.0])
    terms = {
        "plain": Term(value),
        "masked": Term(value, 2.0, mask),
        "rising": Term(jnp.array(5.0), lambda step: step / 4),
        "dropped": Term(value, 1.0, jnp.array(0.0)),
    }
    loss, means = methods.weighted_sum(terms, jnp.int32(3))
    np.testing.assert_allclose(loss, 3 + 2 * 7 / 3 + 5 * 3 / 4, rtol=1e-6)
    assert means == {"plain": 3, "masked": 3, "rising": 5, "dropped": 3}
    assert methods.weighted_sum({}, jnp.int32(0))[0].dtype == jnp.float32


@pytest.mark.parametrize(("student", "teacher"), [(8, 4), (4, 8), (8, 8), (8, 7)])
def test_the_regressor_gives_the_teachers_shape(student, teacher):
    maps = jnp.ones((2, student, student, 3))
    seen = {"student": Outputs(jnp.ones((2, 2)), {"stage2": maps})}
    regressor = Regressor("stage2", (teacher, teacher, 5))
    got, variables = jax.eval_shape(
        lambda key: regressor.init_with_output(key, seen, {}, train=True),
        jax.random.key(0),
    )
    assert got.shape == (2, teacher, teacher, 5)
    kernels = {(8, 4): (3, 3), (4, 8): (4, 4), (8, 8): (1, 1), (8, 7): (2, 2)}
    (kernel,) = (
        leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4
    )
    assert kernel.shape == (*kernels[student, teacher], 3, 5)


def test_a_regressor_that_cannot_fit_names_the_shapes():
    seen = {"student": Outputs(jnp.ones((2, 2)), {"stage2": jnp.ones((2, 3, 3, 1))})}
    regressor = Regressor("stage2", (8, 8, 5))
    with pytest.raises(UserError, match=r"\(3, 3\).*\(8, 8\)"):
        regressor.init(jax.random.key(0), seen, {}, train=True)
