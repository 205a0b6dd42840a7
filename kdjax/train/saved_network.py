"""A network in a folder of its own, which knows what it is.

    save_network(folder, SavedNetwork("resnet-20", 10, (32, 32, 3)), variables)
    network, variables = read_network(folder)

The variables lie as a stage's do, below `networks/student`; `network.json`, written
last, says which network they are of.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from kdjax import models
from kdjax.models import Variables
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import digest, write_json
from kdjax.train.checkpoint import Checkpoints

FILE = "network.json"
"""What says which network a folder holds."""
_VARIABLES = Path("networks") / "student"


@dataclasses.dataclass(frozen=True)
class SavedNetwork:
    """What a network in a folder is.

    Attributes:
        model: its name.
        num_classes: the number of classes.
        image_shape: height, width and channels.
        source: where it comes from, for people.
    """

    model: str
    num_classes: int
    image_shape: tuple[int, int, int]
    source: str = ""


def check_free(folder: Path) -> None:
    """Raises UserError if a folder holds a network already."""
    for path in (folder / FILE, folder / _VARIABLES):
        if path.exists():
            raise UserError(
                f"{folder} holds a network already ({path.relative_to(folder)}): "
                "delete it or choose another folder"
            )


def save_student(folder: Path, model: str, variables: Variables) -> None:
    """Saves a network that was not trained where a stage's student lies.

    Args:
        folder: the replica's; what a killed run has left there is replaced.
        model: the network's name.
        variables: 'params' and 'batch_stats'.
    """
    shutil.rmtree(folder / _VARIABLES, ignore_errors=True)
    with Checkpoints(folder / _VARIABLES) as keeper:
        keeper.save(0, variables, {"model": model})


def save_network(folder: Path, network: SavedNetwork, variables: Variables) -> None:
    """Saves a network.

    Args:
        folder: is made; must not hold a network already.
        network: what it is.
        variables: 'params' and 'batch_stats'.

    Raises:
        UserError: the folder holds a network or cannot be written.
    """
    check_free(folder)
    try:
        with Checkpoints(folder / _VARIABLES) as keeper:
            keeper.save(0, variables, {"model": network.model})
        settings = dataclasses.asdict(network)
        write_json(folder / FILE, {**settings, "digest": digest(variables)})
    except PermissionError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def read_network(folder: Path) -> tuple[SavedNetwork, Variables]:
    """Returns what a folder's network is, and its variables as NumPy arrays.

    Raises:
        UserError: there is no network, or it is damaged.
    """
    try:
        settings: dict[str, Any] = json.loads((folder / FILE).read_text())
        saved = settings.pop("digest")
        settings["image_shape"] = tuple(settings["image_shape"])
        network = SavedNetwork(**settings)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {FILE}: no network was saved") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / FILE} cannot be read: {error}") from error
    shapes = models.shapes(network.model, network.num_classes, network.image_shape)
    with Checkpoints(folder / _VARIABLES) as keeper:
        if keeper.latest() is None:
            raise UserError(f"{folder / _VARIABLES} holds no network")
        variables, _ = keeper.restore(shapes)
    if digest(variables) != saved:
        raise UserError(f"{folder}: the variables are not those that {FILE} names")
    return network, variables
