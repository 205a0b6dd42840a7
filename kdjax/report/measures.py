"""Fidelity and calibration of a run's networks, for the page and `results.json`."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.analysis import calibration, fidelity
from kdjax.analysis.overlap import Overlap, by_seed
from kdjax.report.outputs import Looker
from kdjax.report.page import label
from kdjax.report.runs import STUDENT, Run, Stage
from kdjax.runtime.files import write_json

NOTES = (
    "Agreement: share of the test images (%) for which the student and the teacher "
    "that the line names predict the same class. KL: mean of KL(teacher || student) "
    "over the test images, in nats, at temperature 1, for the same teachers line by "
    f"line. ECE: expected calibration error (%) in {calibration.BINS} bins of equal "
    "width (Guo et al., 2017). All are medians over the seeds.",
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of a run's networks.

    Attributes:
        agreement: by stage and teacher, of every replica.
        kl: likewise.
        ece: by network's label, of every replica.
        overlaps: of the errors of every stage and of all that taught it.
        images: how many test images these are of; None means all.
    """

    agreement: Mapping[str, Mapping[str, list[float]]]
    kl: Mapping[str, Mapping[str, list[float]]]
    ece: Mapping[str, list[float]]
    overlaps: tuple[Overlap, ...]
    images: int | None = None

    def columns(self) -> dict[str, dict[str, Any]]:
        """Returns the columns of the page's table of networks, see `page.section`."""
        return {
            "agreement": {
                stage: _lines(teachers, "{0} {1:.2f}", 100)
                for stage, teachers in self.agreement.items()
            },
            "KL": {
                stage: _lines(teachers, "{1:.4f}", 1)
                for stage, teachers in self.kl.items()
            },
            "ECE": {
                name: (100 * float(np.median(each)), [f"{100 * np.median(each):.2f}"])
                for name, each in self.ece.items()
            },
        }


def _lines(
    teachers: Mapping[str, list[float]], form: str, scale: float
) -> tuple[float, list[str]]:
    medians = {name: scale * float(np.median(each)) for name, each in teachers.items()}
    lines = [form.format(name, value) for name, value in medians.items()]
    return next(iter(medians.values())), lines


def measure(run: Run, looker: Looker) -> Measured:
    """Measures all of a run's networks whose test images are at hand."""
    labels = looker.test.labels
    agreement: dict[str, dict[str, list[float]]] = {}
    kl: dict[str, dict[str, list[float]]] = {}
    ece: dict[str, list[float]] = {}
    overlaps = []
    for name, stage in looker.stages.items():
        for role in stage.networks:
            ece[label(stage, role)] = [
                calibration.reliability(
                    looker.outputs(name, replica, role).logits, labels
                ).ece
                for replica in range(len(stage.seeds))
            ]
        for replica in range(len(stage.seeds)):
            own = looker.outputs(name, replica).logits
            for teacher, theirs in _teachers(run, looker, stage, replica).items():
                agreement.setdefault(name, {}).setdefault(teacher, []).append(
                    fidelity.agreement(own, theirs)
                )
                kl.setdefault(name, {}).setdefault(teacher, []).append(
                    fidelity.divergence(own, theirs)
                )
        guides = [guide for guide in run.ancestors(name) if guide in looker.stages]
        for guide in reversed(guides):  # the nearest first
            overlaps.append(_overlap(run, looker, name, guide))
    images = None if looker.test.whole else len(labels)
    return Measured(agreement, kl, ece, tuple(overlaps), images)


def _teachers(
    run: Run, looker: Looker, stage: Stage, replica: int
) -> dict[str, np.ndarray]:
    """Returns the logits of all that taught a replica directly, by name."""
    logits = {
        teacher: looker.outputs(teacher, looker.stages[teacher].replica(replica)).logits
        for teacher in stage.teachers
        if teacher in looker.stages
    }
    beside = [role for role in stage.networks if role != STUDENT]
    return logits | {
        role: looker.outputs(stage.name, replica, role).logits for role in beside
    }


def _overlap(run: Run, looker: Looker, taught: str, guide: str) -> Overlap:
    """Returns the overlap of two networks' errors."""
    # Of two equal networks the taught one counts as the smaller: sorting is stable.
    pair = sorted(
        (taught, guide), key=lambda name: run.stages[name].student.parameters or 0
    )
    predicted = []
    for replica in range(len(run.stages[taught].seeds)):
        replicas = {taught: replica, guide: run.seed_of(guide, taught, replica)}
        small, large = (
            looker.outputs(name, replicas[name]).logits.argmax(1) for name in pair
        )
        predicted.append((small, large))
    each, by_chance = by_seed(predicted, looker.test.labels)
    return Overlap(
        taught, guide, pair[0], are_neighbours(run, taught, guide), each, by_chance
    )


def are_neighbours(run: Run, taught: str, guide: str) -> bool:
    """Returns whether no stage lies between one that teaches and one that is taught."""
    between = set(run.ancestors(taught)) - {guide}
    return all(guide not in run.ancestors(name) for name in between)


def stored_overlaps(run: Run) -> list[Overlap]:
    """Returns the overlaps that `kdjax.analysis` has written into a run's results."""
    return [
        Overlap(
            taught,
            guide,
            found["smaller"],
            are_neighbours(run, taught, guide),
            found["each"],
            found["by_chance"],
        )
        for taught, stage in run.results.get("stages", {}).items()
        if taught in run.stages
        for guide, found in stage.get("error_overlap", {}).items()
        if guide in run.stages
    ]


def store(run: Run, measured: Measured) -> bool:
    """Adds agreement, KL and ECE to the run's `results.json`; returns whether it could.

    All else in the file stays as it is.
    """
    path = run.path / "results.json"
    if "stages" not in run.results or not os.access(run.path, os.W_OK):
        return False
    stages = run.results["stages"]
    for name, stage in run.stages.items():
        entry = stages.get(name)
        if entry is None or name not in measured.ece:
            continue
        if entry["fingerprint"] != [
            _fingerprint(stage, i) for i in range(len(stage.seeds))
        ]:
            continue  # of another command's stage of that name
        sample = {} if measured.images is None else {"images": measured.images}
        entry["ece"] = {
            **_summary(measured.ece[name]),
            "bins": calibration.BINS,
            **sample,
        }
        for key, found in (("agreement", measured.agreement), ("kl", measured.kl)):
            if name in found:
                entry[key] = {
                    teacher: {**_summary(each), **sample}
                    for teacher, each in found[name].items()
                }
    write_json(path, run.results)
    return True


def _fingerprint(stage: Stage, replica: int) -> str:
    return stage.folders[replica].name.rpartition("-")[2]


def _summary(each: list[float]) -> dict[str, Any]:
    return {"each": each, "median": float(np.median(each))}
