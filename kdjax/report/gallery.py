"""Which pictures a run is shown by: those of the papers, and what neither has."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdjax.analysis.overlap import Overlap
from kdjax.report import lineage
from kdjax.report.figures import chains, curves, sizes
from kdjax.report.figures.style import Picture, Plot, save
from kdjax.report.runs import Run, Stage

_BAND = "Lines are medians over the seeds, bands span them."


class Gallery:
    """The pictures of one run, in the order of the page.

    Attributes:
        pictures: those made so far.
        prefix: of their files' names.
    """

    def __init__(self, run: Run, out: Path, prefix: str):
        """Makes nothing yet.

        Args:
            run: what is shown.
            out: the page's folder.
            prefix: of the files' names.
        """
        self._run, self._out, self.prefix = run, out, prefix
        self.pictures: list[Picture] = []
        datasets = dict.fromkeys(stage.dataset for stage in run.stages.values())
        self._data = ", ".join(datasets)

    def add(self, name: str, title: str, caption: str, alt: str, plot: Plot) -> None:
        """Draws a picture.

        Args:
            name: of its files.
            title: see `Picture`.
            caption: likewise.
            alt: likewise.
            plot: draws it, in a theme.
        """
        picture = save(
            plot,
            self._out,
            f"{self.prefix}-{name}",
            title=title,
            caption=caption,
            alt=alt,
        )
        self.pictures.append(picture)

    def figure_of(self, paper: str, number: str, dataset: str) -> str:
        """Returns how a picture relates to a paper's: it is one only on its data."""
        there = {
            "CTKD 5": "cifar10",
            "CTKD 6": "cifar10",
            "CTKD 7": "cifar100",
            "DGKD 4": "cifar100",
            "DGKD 5": "cifar10",
            "DGKD 6": "cifar100",
            "DGKD 7": "cifar100",
        }.get(f"{paper} {number.rstrip('()ab ')}")
        figure = f"{paper} Fig. {number}"
        return figure if there == dataset else f"as {paper} Fig. {number}, {dataset}"

    def from_results(self, overlaps: Sequence[Overlap]) -> None:
        """Adds what needs no network: curves, chains, and sizes.

        Args:
            overlaps: of the errors of networks, as far as they are known.
        """
        self._curves()
        self._chains(overlaps)
        self._sizes()

    def _curves(self) -> None:
        read = {name: curves.read(stage) for name, stage in self._run.stages.items()}
        stages = [stage for name, stage in self._run.stages.items() if read[name]]
        groups: dict[tuple[str, str], list[Stage]] = {}
        for stage in stages:
            key = stage.dataset, lineage.plain(stage.student.model)
            groups.setdefault(key, []).append(stage)
        for number, ((dataset, model), members) in enumerate(groups.items(), start=1):
            alike = len({stage.label for stage in members}) < len(members)
            lines = [
                curves.Line(
                    self._label(stage, members),
                    read[stage.name],
                    look=place if alike else self._run.labels.index(stage.label),
                )
                for place, stage in enumerate(members)
            ]
            if len(members) > 1:
                paper = "7" if dataset == "cifar100" else "5(b)"
                self.add(
                    f"curves-{number}",
                    f"{model}: methods side by side "
                    f"({self.figure_of('CTKD', paper, dataset)})",
                    f"Left: cross-entropy with the labels on training images, without "
                    f"the methods' own terms. {_BAND}",
                    self._alt_accuracy(
                        f"Curves of {model} by way of teaching", members
                    ),
                    functools.partial(curves.side_by_side, lines),
                )
            self._with_scratch(number, dataset, model, members, read)

    def _with_scratch(
        self,
        number: int,
        dataset: str,
        model: str,
        members: Sequence[Stage],
        read: dict[str, curves.Curves],
    ) -> None:
        """Adds the curves of students that have a teacher beside them."""
        beside = [stage for stage in members if "scratch" in stage.networks]
        panels = {
            self._label(stage, beside): [
                curves.Line("student", read[stage.name]),
                curves.Line("scratch teacher", read[stage.name], "scratch"),
            ]
            for stage in beside
        }
        for stage in (s for s in beside if s.kind == "ctkd"):
            alone = [s for s in members if s.kind == "supervised"][:1]
            lines = [
                curves.Line(f"student, {stage.label}", read[stage.name]),
                curves.Line("scratch teacher", read[stage.name], "scratch"),
                *(curves.Line("student alone (baseline)", read[s.name]) for s in alone),
            ]
            self.add(
                f"scratch-{number}-{self._number(stage)}",
                f"Student and scratch teacher, {model} "
                f"({self.figure_of('CTKD', '5(a)', dataset)})",
                _BAND + ("" if alone else " The run has no baseline of this network."),
                self._alt_accuracy("Test accuracy over the epochs", [stage, *alone]),
                functools.partial(curves.accuracies, lines),
            )
        if panels:
            self.add(
                f"beside-{number}",
                f"{model} and the teacher beside it "
                f"({self.figure_of('CTKD', '6', dataset)})",
                f"Accuracy and loss on test images. {_BAND}",
                self._alt_accuracy("Student and the teacher trained beside it", beside),
                functools.partial(curves.with_teacher, panels),
            )

    def _number(self, stage: Stage) -> int:
        return list(self._run.stages).index(stage.name)

    @staticmethod
    def _label(stage: Stage, among: Sequence[Stage]) -> str:
        """Returns a stage's way of teaching, with its name where that is not enough."""
        alike = [other for other in among if other.kind == stage.kind]
        return stage.label if len(alike) == 1 else f"{stage.label} ({stage.name})"

    def _alt_accuracy(self, what: str, stages: Sequence[Stage]) -> str:
        ends = (
            f"{stage.name} {100 * float(np.median(stage.student.accuracy)):.2f} %"
            for stage in stages
        )
        return f"{what}; median test accuracy at the end: {', '.join(ends)}."

    def _chains(self, overlaps: Sequence[Overlap]) -> None:
        near = [pair for pair in overlaps if pair.neighbours]
        if near:
            dataset = self._run.stages[near[0].taught].dataset
            shares = ", ".join(
                f"{pair.guide} and {pair.taught} {100 * pair.median:.1f} %"
                for pair in near
                if pair.median is not None
            )
            self.add(
                "overlap",
                "Errors that teacher and student share "
                f"({self.figure_of('DGKD', '4', dataset)})",
                "Of the smaller network's errors, the share that the larger one makes "
                "too. Bars are medians over the seeds, dots are seeds; an upright line "
                "is the share that independent errors would have.",
                f"Error overlap of neighbouring networks: {shares}.",
                functools.partial(chains.overlaps, self._run, near),
            )
        dense = [
            stage
            for stage in self._run.stages.values()
            if stage.kind in ("kd", "takd") or lineage.survival(stage.kind) is not None
        ]
        # What ends a path: nobody after it is taught by it.
        taught = {t for stage in self._run.stages.values() for t in stage.teachers}
        ends = [stage for stage in dense if stage.name not in taught]
        ways = [s for s in ends if s.kind in ("takd", "dgkd") or s.path.count("/") == 1]
        if len({stage.path for stage in ways}) > 1:
            self.add(
                "paths",
                "Accuracy of every path "
                f"({self.figure_of('DGKD', '6', ends[0].dataset)})",
                "Symbols are medians over the seeds, dots seeds.",
                self._alt_accuracy("Accuracy at the end of each path", ways),
                functools.partial(chains.paths, self._run, ways),
            )
        for number, path in enumerate(dict.fromkeys(s.path for s in ends), start=1):
            same = [
                s
                for s in ends
                if s.path == path and lineage.survival(s.kind) is not None
            ]
            if len({stage.kind for stage in same}) > 1:
                self.add(
                    f"survival-{number}",
                    "Survival probability of the guides "
                    f"({self.figure_of('DGKD', '7', same[0].dataset)})",
                    f"Stochastic DGKD on {chains.short(path)}; p = 1 is DGKD.",
                    self._alt_accuracy("Accuracy by survival probability", same),
                    functools.partial(chains.survivals, same),
                )

    def _sizes(self) -> None:
        stages = list(self._run.stages.values())
        if all(stage.student.parameters is None for stage in stages):
            return
        self.add(
            "sizes",
            f"Parameters against accuracy, {self._data}",
            "Every stage's student: symbols are medians over the seeds, dots seeds.",
            self._alt_accuracy("Parameters against test accuracy", stages),
            functools.partial(sizes.sizes, self._run),
        )
