"""Networks that are on disk: of finished stages, and imported ones."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from kdjax.data import sources
from kdjax.experiment.config import PRECISIONS
from kdjax.models import Variables
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.files import read_checked_json
from kdjax.train import saved_network
from kdjax.train.loop import load_network


@dataclasses.dataclass(frozen=True)
class Finished:
    """A network in a folder, with what has to be known to use it.

    Attributes:
        folder: of a stage's replica, or of an imported network.
        model: the network's name.
        num_classes: the length of its logits.
        classes: their names, or nothing.
        image_shape: height, width and channels of its images.
        mean: of each channel, on the scale 0 to 1; None if it is not known.
        std: standard deviation of each channel; None if it is not known.
        precision: a row of `PRECISIONS`.
        result: the replica's figures; empty for imported networks.
    """

    folder: Path
    model: str
    num_classes: int
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    precision: str = "float32"
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def variables(self) -> Variables:
        """Returns the network's variables.

        Raises:
            UserError: its files are damaged.
        """
        dtype = PRECISIONS[self.precision].dtype
        if self.precision == "float64":
            jax.config.update("jax_enable_x64", True)
        return load_network(
            self.folder, self.model, self.num_classes, self.image_shape, dtype
        )


def find(workdir: Path, stage: str, seed: int = 0) -> Finished:
    """Returns the network of a stage that another run has finished.

    Args:
        workdir: of that run.
        stage: its name there.
        seed: which of its replicas.

    Raises:
        UserError: no such folder, stage or seed, or it is not finished.
    """
    results = results_of(workdir)
    stages = results["stages"]
    if stage not in stages:
        raise unknown(f"stage of {workdir}", stage, stages)
    prints = stages[stage]["fingerprint"]
    if not 0 <= seed < len(prints):
        raise unknown(f"seed of {stage} in {workdir}", seed, range(len(prints)))
    folders = sorted((workdir / "stages").glob(f"*-{prints[seed]}"))
    if not folders or not (folders[0] / "result.json").exists():
        raise UserError(f"{workdir}: stage {stage!r} seed {seed} is not finished")
    return _of_stage(folders[0], results["config"])


def results_of(workdir: Path) -> dict[str, Any]:
    """Returns what `results.json` of a finished run holds.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    return _read(workdir / "results.json")


def _of_stage(folder: Path, config: Mapping[str, Any]) -> Finished:
    """Returns the network of a finished replica's folder."""
    settings, result = _read(folder / "stage.json"), _read(folder / "result.json")
    data = settings["data"]
    source = sources.SOURCES.get(config["data"]["name"])
    # Folders of earlier versions: their data sets are all in the table.
    known = source.num_classes if source else 0
    return Finished(
        folder=folder,
        model=result["networks"]["student"]["model"],
        num_classes=settings.get("num_classes", known),
        classes=tuple(settings.get("classes", ())),
        image_shape=tuple(data["image_shape"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        precision=settings["precision"],
        result=result,
    )


def settings_of(folder: Path) -> dict[str, Any]:
    """Returns all that decided a finished replica, from its folder.

    Raises:
        UserError: the file is damaged.
    """
    return _read(folder / "stage.json")


def imported(folder: Path) -> Finished:
    """Returns a network that `python -m kdjax.import_torch --out` has written.

    Raises:
        UserError: the folder holds no such network.
    """
    about = _read(folder / saved_network.FILE)
    return Finished(
        folder=folder,
        model=about["model"],
        num_classes=about["num_classes"],
        classes=tuple(about.get("classes", ())),
        image_shape=tuple(about["image_shape"]),
        mean=None,
        std=None,
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path} not found")
    try:
        return read_checked_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
