"""Pictures of what trained networks see and answer."""

import functools

import numpy as np
from matplotlib.figure import Figure

from kdjax.analysis import calibration, features, fidelity
from kdjax.report import lineage
from kdjax.report.figures import answers
from kdjax.report.figures.style import Theme
from kdjax.report.gallery import Gallery
from kdjax.report.outputs import Looker
from kdjax.report.runs import STUDENT, Run, Stage
from kdjax.runtime.errors import UserError

_IMAGES = 6
_DIFFERING = 9
_PANELS = 12
_TSNE = 1000


def add(run: Run, looker: Looker, gallery: Gallery) -> None:
    """Adds the pictures that a run's trained networks give; of their first replicas.

    Args:
        run: the run.
        looker: looks into its networks.
        gallery: of the run.
    """
    students = _students(run, looker)
    _attention(run, looker, gallery, students)
    _tsne(looker, gallery)
    _reliability(looker, gallery)
    for number, stage in enumerate(students[:4], start=1):
        _confusion(looker, gallery, stage, number)
    for number, stage in enumerate(students[:4], start=1):
        _differing(looker, gallery, stage, number)


def _students(run: Run, looker: Looker) -> list[Stage]:
    """Returns the taught stages that teach nobody: those that a run is about."""
    teaching = {t for stage in run.stages.values() for t in stage.teachers}
    last = [s for s in looker.stages.values() if s.name not in teaching]
    return [s for s in last if s.teachers or len(s.networks) > 1] or last


def _attention(
    run: Run, looker: Looker, gallery: Gallery, students: list[Stage]
) -> None:
    """Adds CTKD's Figure 3: where student and teachers look."""
    labels = looker.test.labels
    chosen = np.array(
        [np.flatnonzero(labels == label)[0] for label in np.unique(labels)[:_IMAGES]]
    )
    # CTKD first: the figure is its paper's.
    ordered = sorted(students, key=lambda stage: stage.kind != "ctkd")
    for stage in ordered[:1]:
        alone = [
            other
            for other in looker.stages.values()
            if other.kind == "supervised" and other.student.model == stage.student.model
        ]
        before = looker.outputs(alone[0].name) if alone else looker.at_start(stage.name)
        columns = {
            "student alone" if alone else "student before training": before,
            f"student, {stage.label}": looker.outputs(stage.name),
            **{
                role.replace("scratch", "scratch teacher"): looker.outputs(
                    stage.name, 0, role
                )
                for role in stage.networks
                if role != STUDENT
            },
            **{
                name: looker.outputs(name)
                for name in stage.teachers
                if name in looker.stages
            },
        }
        maps = {
            name: outputs.attention[chosen]
            for name, outputs in columns.items()
            if outputs.attention is not None
        }
        if not maps:
            return
        gallery.add(
            "attention",
            f"Attention maps ({gallery.figure_of('CTKD', '3', looker.test.name)})",
            "Mean squared activations of the last level, each map scaled by its own "
            f"largest value, over one test image of each of {len(chosen)} classes. "
            "Left of the distilled student: the same network "
            + ("trained from labels alone." if alone else "before it was trained."),
            f"{len(chosen)} test images, a row each, with the attention maps of "
            f"{', '.join(maps)}.",
            functools.partial(answers.attention, looker.test.images[chosen], maps),
        )


def _tsne(looker: Looker, gallery: Gallery) -> None:
    test = looker.test
    try:
        shown = features.choose(test.labels, _TSNE)
    except UserError:
        return  # too few test images
    labels, panels = test.labels[shown], []
    for name, stage in list(looker.stages.items())[:_PANELS]:
        outputs = looker.outputs(name)
        if outputs.pooled is None:
            continue
        wrong = outputs.logits[shown].argmax(1) != labels
        title = f"{name} ({lineage.plain(stage.student.model)})"
        points = features.embed(outputs.pooled[shown])
        panels.append(features.Panel(title, points, labels, wrong))
    if not panels:
        return

    def plot(theme: Theme) -> Figure:
        return features.draw_tsne(panels, 3 if len(panels) < 5 else 4, test.classes)

    gallery.add(
        "tsne",
        f"t-SNE of pooled features ({gallery.figure_of('DGKD', '5', test.name)})",
        f"{len(shown):,} test images, coloured by class; crosses are errors.",
        "Pooled features of "
        + ", ".join(f"{p.title} with {int(p.wrong.sum())} errors" for p in panels)
        + ".",
        plot,
    )


def _reliability(looker: Looker, gallery: Gallery) -> None:
    found = {
        name: calibration.reliability(looker.outputs(name).logits, looker.test.labels)
        for name in list(looker.stages)[:_PANELS]
    }
    gallery.add(
        "reliability",
        "Reliability: is a network right as often as its confidence says?",
        f"Accuracy by confidence in {calibration.BINS} bins of equal width; a "
        "calibrated network would lie on the dashed line. ECE, the expected "
        "calibration error, is the mean gap over the test images.",
        "Reliability diagrams; expected calibration errors: "
        + ", ".join(f"{name} {100 * bins.ece:.2f} %" for name, bins in found.items())
        + ".",
        functools.partial(answers.reliability, found),
    )


def _confusion(looker: Looker, gallery: Gallery, stage: Stage, number: int) -> None:
    labels = looker.test.labels
    predicted = looker.outputs(stage.name).logits.argmax(1)
    wrong = int(np.sum(predicted != labels))
    gallery.add(
        f"confusion-{number}",
        f"What {stage.name} confuses",
        f"Confusion matrix: {len(labels):,} test images, {wrong:,} of them classified "
        "wrongly.",
        f"Confusion matrix of {stage.name}: {wrong} of {len(labels)} test images are "
        "classified wrongly.",
        functools.partial(
            answers.confusion, stage.name, predicted, labels, looker.test.classes
        ),
    )


def _differing(looker: Looker, gallery: Gallery, stage: Stage, number: int) -> None:
    teachers = [name for name in stage.teachers if name in looker.stages]
    if not teachers:
        return
    teacher, test = teachers[0], looker.test
    outputs = {
        "teacher": looker.outputs(teacher).logits,
        "student": looker.outputs(stage.name).logits,
    }
    gaps = fidelity.distances(outputs["student"], outputs["teacher"])
    most = np.argsort(-gaps, kind="stable")[:_DIFFERING]
    probabilities = {
        name: np.exp(fidelity.log_softmax(logits[most]))
        for name, logits in outputs.items()
    }

    def plot(theme: Theme) -> Figure:
        return answers.differing(
            test.images[most],
            test.labels[most],
            probabilities,
            looker.test.classes,
        )

    gallery.add(
        f"differing-{number}",
        f"Where {stage.name} and {teacher} differ most",
        f"The {len(most)} test images with the largest Jensen-Shannon divergence "
        f"between the probabilities of the teacher ({teacher}) and the student "
        f"({stage.name}). Above each image: its true class, and the class that each "
        "network predicts, with its probability.",
        f"{len(most)} test images with the classes that {teacher} and {stage.name} "
        "name.",
        plot,
    )
