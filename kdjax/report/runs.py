"""What a report is made of: networks of finished stages."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdjax.report import lineage

STUDENT = "student"


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of a stage.

    Attributes:
        model: its name.
        parameters: how many it has; None where that is not at hand.
        accuracy: on test images after the last epoch, by replica, from 0 to 1.
        top5: likewise.
        loss: the test loss by replica; empty where it is not at hand.
    """

    model: str
    parameters: int | None
    accuracy: tuple[float, ...]
    top5: tuple[float, ...]
    loss: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage: all its replicas.

    Attributes:
        name: unique within the run.
        kind: how it was taught, see `lineage.kind`.
        path: by whom, see `lineage.path`.
        teachers: the names of the stages that taught it.
        networks: by role; the student is one of them.
        seeds: of the replicas.
        folders: of the replicas; empty where only their results are at hand.
        epochs: of training; 0 where the network was given.
        dataset: the data set's name.
        train_images: how many it learned from.
        test_images: how many it is judged on.
        settings: all that decided the first replica, for people.
    """

    name: str
    kind: str
    path: str
    teachers: tuple[str, ...]
    networks: Mapping[str, Network]
    seeds: tuple[int, ...]
    folders: tuple[Path, ...]
    epochs: int
    dataset: str
    train_images: int
    test_images: int
    settings: Mapping[str, Any]

    @property
    def student(self) -> Network:
        """The network that the stage is about."""
        return self.networks[STUDENT]

    @property
    def label(self) -> str:
        """How it was taught, in the papers' words."""
        return lineage.label(self.kind)

    def replica(self, index: int) -> int:
        """Returns which replica teaches a taught stage's replica."""
        return index % len(self.seeds)


@dataclasses.dataclass(frozen=True)
class Run:
    """The finished stages of one working folder or file of results.

    Attributes:
        name: for people, unique in the report.
        path: the folder or the file.
        stages: by name, teachers first.
        results: the content of `results.json`; empty where there is none.
    """

    name: str
    path: Path
    stages: Mapping[str, Stage]
    results: Mapping[str, Any]

    @property
    def has_networks(self) -> bool:
        """Whether the trained networks can be at hand: it is a working folder."""
        return self.path.is_dir()

    @property
    def labels(self) -> list[str]:
        """The ways of teaching, each once: by their places figures colour them."""
        return list(dict.fromkeys(stage.label for stage in self.stages.values()))

    def ancestors(self, name: str) -> list[str]:
        """Returns all that taught a stage, itself or through others, in order."""
        found: set[str] = set()
        queue = list(self.stages[name].teachers)
        while queue:
            teacher = queue.pop()
            if teacher not in found and teacher in self.stages:
                found.add(teacher)
                queue += self.stages[teacher].teachers
        return [stage for stage in self.stages if stage in found]

    def seed_of(self, guide: str, taught: str, index: int) -> int:
        """Returns the replica of a guide on the way to a taught stage's replica.

        Where ways lead to several replicas of the guide, the shortest counts.
        """
        queue = [(taught, index)]
        for name, replica in queue:  # breadth first: grows during the loop
            for teacher in self.stages[name].teachers:
                if teacher not in self.stages:
                    continue
                own = self.stages[teacher].replica(replica)
                if teacher == guide:
                    return own
                queue.append((teacher, own))
        raise ValueError(f"{guide} does not teach {taught}")
