"""An experiment with one's own images, networks and teachers.

    own.config(own.Request(data="photos/", student="resnet-8", teacher="teacher.pth",
                           teacher_model="resnet-20"))

What is left open is chosen by the size of the data, and said when the run begins.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from kdjax import models
from kdjax.data import own as own_data
from kdjax.data.own.vary import Vary
from kdjax.experiment import chains, pairs
from kdjax.experiment.builders import StageConfig
from kdjax.experiment.teachers import Teacher, check_network
from kdjax.methods import METHODS
from kdjax.models import MODELS
from kdjax.runtime.errors import UserError, unknown
from kdjax.train.recipe import Recipe

_STEPS = 20_000  # of training, if that is 30 to 200 epochs
_EPOCHS = 30, 200
_DENSE = ("dgkd", "dgkd_stochastic", "takd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What somebody wants distilled.

    Attributes:
        data: a folder of images, an npz file, a folder of parquet files, or what
            `own_data.register_arrays` returned; with `kind`, what that kind takes.
        student: its network.
        student_levels: paths of its modules whose outputs are its levels.
        teacher: who teaches; may be nobody, where the method wants nobody.
        method: a row of `METHODS`, several joined by '+', or one of
            `chains.CHAINS`.
        chain: networks between teacher and student, the larger first: each is trained
            in turn and then teaches as the method has it.
        start: what the student starts from, see `kdjax.experiment.given`.
        kind: of the data; empty: found by looking at it.
        data_options: further settings of `own_data.OwnData`, by name.
        epochs: of every stage; 0: chosen.
        batch_size: 0: chosen.
        seeds: how many students, and as many of each network that is trained for them.
        recipe: what shall differ from the chosen recipe, by `Recipe`'s fields.
        augment: how images are varied: 'default', 'none', or settings by name.
        options: hyper-parameters by method.
        settings: what shall differ in 'precision', 'saving' and 'bank' of the config.
    """

    data: str
    student: str
    student_levels: Sequence[str] = ()
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    method: str = "kd"
    chain: Sequence[str] = ()
    start: str = ""
    kind: str = ""
    data_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int = 0
    batch_size: int = 0
    seeds: int = 1
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    augment: str | Mapping[str, Any] = "default"
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def config(request: Request) -> ConfigDict:
    """Returns the config of an experiment with one's own parts.

    Raises:
        UserError: data, networks or a method that are not there or do not fit.
    """
    student = check_network(request.student, request.student_levels)
    name = request.kind or own_data.find_kind(request.data)
    data = {"name": name, "path": request.data, **request.data_options}
    about = own_data.describe(data)
    recipe = _recipe(request, about, student)
    image_shape = about.image_shape
    augment = _augment(request, image_shape)
    stages = _stages(request, student, recipe, about)
    for stage in stages.values():
        # Teachers and assistants that are trained here, if they are of another make.
        if "recipe" in stage:
            continue  # it has its own
        own = _optimisation(stage["model"], request.recipe.get("optimizer", ""))
        changes = {
            key: value
            for key, value in own.items()
            if key not in request.recipe and getattr(recipe, key) != value
        }
        if changes and "given" not in stage and stage is not stages["student"]:
            stage["recipe"] = changes
    note = (
        f"{about.train_size:,} training and {about.test_size:,} test images of "
        f"{about.num_classes} classes, {'x'.join(map(str, image_shape))}; "
        f"{recipe.epochs} epochs of {about.train_size // recipe.batch_size} steps, "
        f"batch {recipe.batch_size}, {recipe.optimizer} {recipe.learning_rate:g} "
        f"({recipe.schedule}); images varied by {_words(augment)}"
    )
    told = request.teacher.description(image_shape) if "teacher" in stages else ""
    config = {
        "note": f"{note}\n{told}" if told else note,
        "data": {**dataclasses.asdict(own_data.parse(data)), "augment": augment},
        "recipe": dataclasses.asdict(recipe),
        "seeds": request.seeds,
        "precision": "float32",
        "saving": {"every_s": 60.0, "best": False, "evaluate_every": 1},
        "bank": {"use": True, "max_gb": 20.0},
        "stages": stages,
    }
    return ConfigDict({**config, **request.settings})


def _recipe(request: Request, about: own_data.Description, student: str) -> Recipe:
    """Returns the recipe: what is asked for, and defaults by the size of the data."""
    size = about.train_size
    batch = 128 if size >= 10_000 else 64 if size >= 1_000 else 32
    batch = request.batch_size or min(batch, size)
    steps = max(1, size // batch)
    epochs = request.epochs or min(max(round(_STEPS / steps), _EPOCHS[0]), _EPOCHS[1])
    recipe: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch,
        "milestones": (),
        "schedule": "cosine",
        "warmup": 0.05,
        **_optimisation(student, request.recipe.get("optimizer", "")),
    }
    if batch > size:
        raise UserError(f"batch_size={batch} is larger than the {size} training images")
    if request.start:
        recipe["learning_rate"] /= 10  # it has learned already
    known = {field.name for field in dataclasses.fields(Recipe)}
    for key in request.recipe:
        if key not in known:
            raise unknown("option of recipe", key, sorted(known))
    return Recipe(**{**recipe, **request.recipe})


def _optimisation(network: str, optimizer: str = "") -> dict[str, Any]:
    """Returns what a network learns well with: SGD, or AdamW if it is not known.

    Args:
        network: its name.
        optimizer: if it is chosen already.
    """
    network = models.inner(network)
    known = network.split("-")[0] in MODELS
    if optimizer in ("adam", "adamw") or not (known or optimizer):
        return {
            "optimizer": optimizer or "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.0 if optimizer == "adam" else 0.05,
            "clip_norm": 1.0,
        }
    slow = network.startswith(("mobilenetv2", "shufflenet"))
    return {
        "optimizer": "sgd",
        "learning_rate": 0.01 if slow else 0.05,
        "weight_decay": 5e-4,
        "nesterov": True,
        "clip_norm": 0.0,
    }


def _augment(request: Request, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns how images are varied: by shifts, large ones by their scale; by flips."""
    default = dataclasses.asdict(Vary())
    if not isinstance(request.augment, str):
        return {**default, **request.augment}
    if request.augment == "none":
        return default
    if request.augment != "default":
        raise unknown("augment", request.augment, ("default", "none"))
    side, flip = min(shape[:2]), shape[2] > 1  # grey ones may be of letters
    if side > 64:
        return {**default, "area": (0.35, 1.0), "flip": flip}
    return {**default, "crop": side // 8, "padding": "zero", "flip": flip}


def _words(augment: Mapping[str, Any]) -> str:
    default = dataclasses.asdict(Vary())
    changed = {key: value for key, value in augment.items() if value != default[key]}
    return ", ".join(f"{key}={value}" for key, value in changed.items()) or "nothing"


def _stages(
    request: Request,
    student: str,
    recipe: Recipe,
    about: own_data.Description,
) -> dict[str, StageConfig]:
    """Returns teacher, assistants and student."""
    teacher, method = request.teacher, request.method
    train_size, image_shape = about.train_size, about.image_shape
    if method not in _DENSE and any(part not in METHODS for part in method.split("+")):
        raise unknown("method", method, (*METHODS, *_DENSE[1:]))
    steps = max(1, train_size // recipe.batch_size)

    def taught(
        teachers: Mapping[str, str], model: str, how: str = method
    ) -> StageConfig:
        beta = 1e3 * min(1.0, image_shape[0] * image_shape[1] / 32**2)
        chosen: dict[str, dict[str, Any]] = {"ctkd": {"beta": beta}}
        chosen["at"] = {"beta": beta}
        if any(part in how.split("+") for part in ("ctkd", "rocket")):
            chosen["ctkd"]["scratch"] = teacher.network()
            chosen["rocket"] = {"scratch": teacher.network()}
        if "dml" in how.split("+") and (teacher.source or teacher.model):
            chosen["dml"] = {"peers": (teacher.network(),)}
        for part, options in request.options.items():
            chosen[part] = {**chosen.get(part, {}), **options}
        return pairs.stage(how, teachers, model, recipe.epochs, steps, chosen)

    for part in request.options:
        if part not in (*METHODS,):
            raise unknown("method of options", part, METHODS)
    parts = ["dgkd"] if method in _DENSE else method.split("+")
    wants = any(METHODS[part].num_teachers != 0 for part in parts)
    if wants and not (teacher.source or teacher.model):
        raise UserError(
            f"method {method!r} needs a teacher: teacher= a file of weights or logits, "
            "WORKDIR:STAGE, or a network to train first, such as resnet-56"
        )
    if not wants:
        if request.chain:
            raise UserError(f"method {method!r} has no teachers: chain= is for others")
        stages = {"student": taught({}, student)}
    else:
        stages = _chain(request, student, taught, about.num_classes)
    if request.start:
        stages["student"]["start"] = request.start
    return stages


def _chain(
    request: Request, student: str, taught: Any, num_classes: int
) -> dict[str, StageConfig]:
    """Returns the stages of a path from the teacher to the student."""
    first = request.teacher.stage(num_classes)
    between = tuple(check_network(word) for word in request.chain)
    path = (first["model"], *between, student)

    def name(upto: tuple[str, ...], last: bool) -> str:
        if last:
            return "student"
        return f"assistant{len(upto) - 1}" if len(upto) > 1 else "teacher"

    method = request.method
    if method in _DENSE:
        options = dict(request.options.get("dgkd", {}))
        teaching = chains.Teaching(
            options.pop("alpha", 0.7), options.pop("temperature", 5.0), options
        )
        survival = options.pop("survival", 0.75)
        stages = chains.chain(path, method, teaching, survival, name)
    else:
        stages = chains.relay(path, taught, name)
    stages["teacher"] = first
    return stages
