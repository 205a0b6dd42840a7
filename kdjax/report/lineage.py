"""What a network is and how it was taught: by this a run finds its row of a table."""

from collections.abc import Mapping, Sequence
from typing import Any

LABELS = {
    "supervised": "labels alone",
    "kd": "KD",
    "takd": "TAKD",
    "at": "ATKD",
    "rlkd": "RLKD",
    "scratch_only": "scratch teacher alone",
    "rlkd_kd": "RLKD+KD",
    "scratch+fitnet": "scratch teacher + FitNet",
    "weights": "CTKD‡ (inherited weights)",
    "ctkd": "CTKD",
    "dgkd": "DGKD",
    "fitnet": "FitNet",
    "dml": "Mutual (DML)",
    "one": "Online KD (ONE)",
    "given": "given",
}
"""What readers of the papers call a kind; others are called by their method's name."""

_STOCHASTIC = "dgkd p="


def label(kind: str) -> str:
    """Returns what readers of the papers call a kind."""
    if kind.startswith(_STOCHASTIC):
        return f"stochastic DGKD, p = {kind.removeprefix(_STOCHASTIC)}"
    return LABELS.get(kind, kind)


def survival(kind: str) -> float | None:
    """Returns the survival probability of DGKD's guides; None of other kinds."""
    if kind == "dgkd":
        return 1.0
    if kind.startswith(_STOCHASTIC):
        try:
            return float(kind.removeprefix(_STOCHASTIC))
        except ValueError:  # guides dropped by another rule
            return None
    return None


def kind(
    method: str, options: Mapping[str, Mapping[str, Any]], taught_teachers: bool
) -> str:
    """Returns how a network was taught, by the names that `papers.toml` uses.

    Args:
        method: the stage's method, such as 'rocket+kd'.
        options: the hyper-parameters of its parts, by their names.
        taught_teachers: whether a teacher was taught by others itself.
    """
    tied = options.get("rocket", {}).get("tied", "lower") != "none"
    if method == "kd":
        return "takd" if taught_teachers else "kd"
    if method == "rocket":
        return "rlkd" if tied else "scratch_only"
    if method == "rocket+kd" and tied:
        return "rlkd_kd"
    if method == "rocket+fitnet" and not tied:
        return "scratch+fitnet"
    if method == "ctkd":
        return "weights" if options.get("ctkd", {}).get("inherit") else "ctkd"
    if method == "dgkd":
        chosen = options.get("dgkd", {})
        drop, probability = chosen.get("drop", "bernoulli"), chosen.get("survival", 1.0)
        if drop != "bernoulli":
            return f"{_STOCHASTIC}{drop}"
        return "dgkd" if probability == 1 else f"{_STOCHASTIC}{probability:g}"
    return method


def path(model: str, teachers: Sequence[str], ancestors: Sequence[str]) -> str:
    """Returns the models from the first teacher to the network itself.

    Args:
        model: the network's own.
        teachers: the paths of those that teach it.
        ancestors: models of all that teach it, themselves or through others, in the
            order of training.
    """
    if len(teachers) > 1 and not any("/" in taught for taught in teachers):
        # Teachers that nobody has taught: an ensemble.
        return f"{'+'.join(teachers)}/{plain(model)}"
    return "/".join(plain(name) for name in (*ancestors, model))


def plain(model: str) -> str:
    """Returns a model's name as the papers have it.

    It is without how its weights start, how it sees images and what its levels are.
    """
    if ":" in model:
        from kdjax import models  # here: it imports JAX, which `kdjax.watch` need not

        model = models.inner(model)
    return model.removesuffix("-fan_out")
