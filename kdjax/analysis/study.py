"""The analysis of a finished experiment: error overlap and pooled features."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import models
from kdjax.analysis import features
from kdjax.analysis.overlap import Overlap, by_seed, plot_overlap
from kdjax.data import sources
from kdjax.data.sources import Dataset
from kdjax.data.stream import normalise
from kdjax.experiment.config import parse_config
from kdjax.experiment.store import Store
from kdjax.models import Variables
from kdjax.runtime import backend
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.files import write_json

_BATCH = 256


def read_results(path: Path) -> dict[str, Any]:
    """Returns the content of `results.json`.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        results = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} not found; python -m kdjax.main writes it at its end"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; the experiment's command writes it again"
        ) from error
    for part in ("config", "stages"):
        if not isinstance(results, dict) or not isinstance(results.get(part), dict):
            raise UserError(
                f"{path} has no {part!r}: the experiment's command makes it"
            )
    return results


class Study:
    """A finished experiment in its working folder."""

    def __init__(self, workdir: Path, data_dir: Path | None = None):
        """Reads the results and loads the data.

        Args:
            workdir: the experiment's.
            data_dir: the folder of data sets; None means the experiment's.

        Raises:
            UserError: results or data are missing or damaged, or the folder cannot be
                written.
        """
        self._workdir = workdir
        self._results = read_results(workdir / "results.json")
        if not os.access(workdir, os.W_OK):  # before the work, not after it
            raise UserError(f"workdir {workdir} cannot be written")
        self._experiment = parse_config(self._results["config"])
        if self._experiment.precision == "float64":
            jax.config.update("jax_enable_x64", True)
        where = {"dir": str(data_dir)} if data_dir else {}
        self._dataset = sources.load(**{**self._experiment.data, **where})
        self._store = Store(self._experiment, self._dataset, workdir)

    def run(self, chosen: list[str] | None = None, examples: int = 2000) -> None:
        """Adds error overlaps to `results.json`; plots them and the pooled features.

        Args:
            chosen: the stages to analyse; None means all of the results.
            examples: how many test images t-SNE plots; 0 leaves it out.

        Raises:
            UserError: a stage is unknown, a network is missing or damaged, or there are
                too few images.
        """
        stages, labels = self._experiment.stages, self._dataset.test.labels
        known = [name for name in stages if name in self._results["stages"]]
        for name in chosen or ():
            if name not in known:
                raise unknown("stage", name, known)
        names = [name for name in known if chosen is None or name in chosen]
        shown = features.choose(labels, examples) if examples else None
        replicas = self._replicas(names)
        predictions, pooled = {}, {}
        for name, seed in replicas:
            predicted, features_of_all = evaluate(
                stages[name].model,
                self._store.network(name, seed),
                self._dataset,
                self._experiment.dtype,
            )
            predictions[name, seed] = predicted
            if shown is not None and seed == 0 and name in names:
                pooled[name] = features_of_all[shown]
            accuracy = 100 * np.mean(predicted == labels)
            console.print(f"{name} seed {seed}  {accuracy:.2f} %", markup=False)
        self._report_overlaps(names, predictions)
        if shown is not None:
            self._plot_features(pooled, predictions, shown)

    def _replicas(self, names: list[str]) -> list[tuple[str, int]]:
        """Returns the replicas of some stages and of all their teachers, in order."""
        order = {name: i for i, name in enumerate(self._experiment.stages)}
        replicas = {
            replica
            for name in names
            for seed in range(self._experiment.stages[name].seeds)
            for replica in ((name, seed), *self._guides(name, seed).items())
        }
        for name, seed in replicas:
            if not self._store.result(name, seed):
                raise UserError(
                    f"{name} seed {seed} is not finished in {self._workdir}, or has "
                    "other settings, data or version of kdjax; run the experiment's "
                    "command again, or choose stages by --stages"
                )
        return sorted(replicas, key=lambda replica: (order[replica[0]], replica[1]))

    def _guides(self, name: str, seed: int) -> dict[str, int]:
        """Returns the seeds of all direct and indirect teachers of a replica.

        Its own teachers come first: if paths lead to several replicas of a stage, the
        shortest path counts.
        """
        guides: dict[str, int] = {}
        queue = [(name, seed)]
        for below, replica in queue:  # breadth first: grows during the loop
            for teacher in self._experiment.stages[below].teachers:
                if teacher not in guides:
                    guides[teacher] = self._store.replica_of(teacher, replica)
                    queue.append((teacher, guides[teacher]))
        return guides

    def _parameters(self, name: str) -> int:
        dataset = self._dataset
        shapes = models.shapes(
            self._experiment.stages[name].model,
            dataset.num_classes,
            dataset.test.images.shape[1:],
        )
        return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))

    def _overlap(
        self, taught: str, guide: str, predictions: dict[tuple[str, int], np.ndarray]
    ) -> Overlap:
        labels = self._dataset.test.labels
        # Of two equal networks the taught one counts as the smaller: sorting is stable.
        pair = sorted((taught, guide), key=self._parameters)
        predicted = []
        for seed in range(self._experiment.stages[taught].seeds):
            seeds = {taught: seed, **self._guides(taught, seed)}
            small, large = (predictions[name, seeds[name]] for name in pair)
            predicted.append((small, large))
        each, by_chance = by_seed(predicted, labels)
        between = set(self._guides(taught, 0)) - {guide}
        return Overlap(
            taught=taught,
            guide=guide,
            smaller=pair[0],
            neighbours=all(guide not in self._guides(name, 0) for name in between),
            each=each,
            by_chance=by_chance,
        )

    def _report_overlaps(
        self, names: list[str], predictions: dict[tuple[str, int], np.ndarray]
    ) -> None:
        """Computes the overlaps of all pairs, writes and plots them."""
        overlaps = []
        for name in names:
            guides = self._guides(name, 0)
            # The nearest first.
            order = [guide for guide in self._experiment.stages if guide in guides]
            pairs = [self._overlap(name, guide, predictions) for guide in order[::-1]]
            self._results["stages"][name]["error_overlap"] = {
                pair.guide: pair.summary() for pair in pairs
            }
            overlaps += pairs
        write_json(self._workdir / "results.json", self._results)
        if not overlaps:
            console.print("no stage has a teacher: there is no error overlap to draw")
            return
        plot_overlap(overlaps, path := self._workdir / "error_overlap.png")
        console.print(f"results.json and {path} written", markup=False)

    def _plot_features(
        self,
        pooled: dict[str, np.ndarray],
        predictions: dict[tuple[str, int], np.ndarray],
        shown: np.ndarray,
    ) -> None:
        """Draws the pooled features of some test images, for the first replicas."""
        dataset, panels = self._dataset, []
        labels = dataset.test.labels[shown]
        for name, seen in pooled.items():
            wrong = predictions[name, 0][shown] != labels
            model = self._experiment.stages[name].model
            title = f"{name} ({model})\n{100 * (1 - wrong.mean()):.1f} % right"
            points = features.embed(seen)
            panels.append(features.Panel(title, points, labels, wrong))
            console.print(f"{name}  t-SNE of {len(shown)} images", markup=False)
        title = f"{len(shown):,} test images of {dataset.name}"
        if dataset.num_classes > features.CLASSES:
            title += f" in its first {features.CLASSES} classes"
        title = f"t-SNE of pooled features, seed 0\n{title}"
        features.plot_tsne(panels, title, path := self._workdir / "tsne.png")
        console.print(f"{path} written", markup=False)


def evaluate(
    model: str, variables: Variables, dataset: Dataset, dtype: jnp.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a network's predictions and pooled features on all test images.

    Args:
        model: the network's name.
        variables: its variables.
        dataset: the data set.
        dtype: of the computation.

    Returns:
        The predicted classes [N] and the pooled features [N, channels].
    """
    images = dataset.test.images
    forward = _forward(model, dataset.num_classes, dataset.mean, dataset.std, dtype)
    batch = min(_BATCH, len(images))
    predictions, pooled = [], []
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        # The last batch is filled up, so that one compiled program serves all.
        filled = np.resize(some, (batch, *some.shape[1:]))
        classes, seen = jax.device_get(forward(variables, filled))
        predictions.append(classes[: len(some)])
        pooled.append(seen[: len(some)])
    return np.concatenate(predictions), np.concatenate(pooled)


@functools.cache
def _forward(
    model: str,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: jnp.dtype,
) -> Callable[[Variables, np.ndarray], tuple[jax.Array, jax.Array]]:
    """Returns the compiled function to predicted classes and pooled features."""
    network = models.create(model, num_classes)

    def forward(variables: Variables, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        images = normalise(images, mean, std, dtype)
        outputs: Any = network.apply(variables, images, train=False)
        return outputs.logits.argmax(-1), outputs.features["pooled"]

    return jax.jit(forward, compiler_options=backend.compiler_options())
