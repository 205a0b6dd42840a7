"""Experiments from Python: from one's own networks and data, or from a config."""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax import models
from kdjax.api.network import Network
from kdjax.api.result import Result
from kdjax.data import own as own_data
from kdjax.data.sources import Dataset
from kdjax.experiment import given, own, predictions
from kdjax.experiment.config import parse_config
from kdjax.experiment.run import Run
from kdjax.experiment.teachers import Teacher
from kdjax.methods import METHODS
from kdjax.runtime import backend
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.files import expand
from kdjax.runtime.signals import Interrupt, Interrupted

PathLike = str | os.PathLike[str]
Data = PathLike | tuple[Any, Any]
"""A folder or file, or images and labels."""


def distill(
    *,
    student: Any,
    data: Data,
    test: tuple[Any, Any] | None = None,
    teacher: Any = None,
    method: str = "kd",
    chain: Sequence[Any] = (),
    workdir: PathLike = "runs/own",
    epochs: int = 0,
    batch_size: int = 0,
    seeds: int = 1,
    options: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    augment: str | Mapping[str, Any] = "default",
    start: Any = "",
    student_levels: Sequence[str] = (),
    teacher_levels: Sequence[str] = (),
    teacher_model: Any = "",
    teacher_weights: PathLike = "",
    teacher_size: int | Sequence[int] = (),
    teacher_train: str = "head",
    teacher_mean: float | Sequence[float] = (),
    teacher_std: float | Sequence[float] = (),
    class_order: Sequence[int] = (),
    kind: str = "",
    data_options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Trains a student and the networks that teach it, and returns the result.

    It builds the same graph of stages as `configs/own.py` and runs it in the same way:
    stages that are finished in `workdir` are not repeated, a stopped run continues from
    its last checkpoint, and `results.json` is written.

    Args:
        student: a network's name ('resnet-8', 'package.module:Class(width=32)',
            'timm:resnet18'), or a module of linen, NNX or PyTorch.
        data: a folder of images, an npz file, a folder of parquet files; or images,
            uint8 `[N, height, width]` or `[N, height, width, channels]`, and labels,
            integers or strings.
        test: test images and labels; by default those of the folder, or a fifth of the
            images, which are then not used for training.
        teacher: a network's name or module, which is trained first; a file of PyTorch
            weights ('teacher.pth:resnet-20'); a `Network`, or 'WORKDIR:STAGE'; logits
            of the training images, `[N, classes]`, or their file; a function and its
            variables, `apply(variables, images) -> logits` of normalised images, or
            a module and its variables; or a trained PyTorch module, Keras model (on the
            JAX backend) or Equinox module (with its state, if it has one).
        method: how the student learns: a row of `kdjax.methods.METHODS`, several
            joined by '+', or 'takd', 'dgkd', 'dgkd_stochastic'.
        chain: networks between teacher and student, the larger first.
        workdir: the folder for stages and results.
        epochs: of every stage; 0: chosen by the size of the data.
        batch_size: 0: chosen by the size of the data.
        seeds: the number of students.
        options: the method's hyper-parameters; for several methods by their names.
        recipe: fields of `kdjax.train.recipe.Recipe` that replace those of the chosen
            recipe.
        augment: the augmentation of training images: 'default', 'none', or fields of
            `kdjax.data.own.vary.Vary`.
        start: the student's initial weights: a file or stage, as for a teacher, or its
            variables.
        student_levels: paths of the student's modules whose outputs are its levels,
            'stage1', 'stage2', ..., for methods that compare features.
        teacher_levels: the same for the teacher.
        teacher_model: the network of a file of weights; if the teacher is a table of
            predictions, the network that some methods train beside the student.
        teacher_weights: a file with the weights of the network that `teacher` names;
            without it, timm and torchvision download theirs.
        teacher_size: height and width of the teacher's input; by default as its library
            states, or the data set's.
        teacher_train: the part of a PyTorch teacher with other classes than the data
            set that is trained first: its new 'head', or 'all'.
        teacher_mean: of each channel, on the scale 0 to 1, with which the teacher was
            trained; by default the data set's.
        teacher_std: standard deviation of each channel, as `teacher_mean`.
        class_order: for each of the data set's classes its number among the teacher's.
        kind: the kind of the data, such as 'tfds'; by default detected.
        data_options: further fields of `kdjax.data.own.OwnData`.
        settings: 'precision', 'saving' and 'bank' of the config.

    Raises:
        UserError: an argument is invalid; raised before any training.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
    """
    for what, value in (
        ("epochs", epochs),
        ("batch_size", batch_size),
        ("seeds", seeds),
    ):
        if type(value) is not int:
            raise UserError(f"{what}={value!r} is not a whole number")
    request = own.Request(
        data=_data(data, test),
        kind=kind if not isinstance(data, tuple) else "arrays",
        data_options=data_options or {},
        student=_name(student),
        student_levels=_several(student_levels),
        teacher=_teacher(
            teacher,
            teacher_model,
            levels=_several(teacher_levels),
            weights=os.fspath(teacher_weights),
            size=_several(teacher_size),
            train=teacher_train,
            mean=_several(teacher_mean),
            std=_several(teacher_std),
            order=_several(class_order),
        ),
        method=method,
        chain=tuple(_name(network) for network in chain),
        start=_source(start),
        epochs=epochs,
        batch_size=batch_size,
        seeds=seeds,
        recipe=recipe or {},
        augment=augment,
        options=_options(method, options or {}),
        settings=settings or {},
    )
    return run(own.config(request).to_dict(), workdir)


def run(
    config: Mapping[str, Any] | Any,
    workdir: PathLike,
    stages: Sequence[str] = (),
) -> Result:
    """Runs an experiment, as `python -m kdjax.main` does, and returns the result.

    Args:
        config: the result of a config's `get_config`.
        workdir: the folder for stages and results; finished stages are not repeated.
        stages: the stages to run, with all that teach them; by default all.

    Raises:
        UserError: the config or something that it names is invalid.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
    """
    plain = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(plain, Mapping):
        raise UserError(
            f"config= is a {type(plain).__name__}, not what get_config returns"
        )
    folder = expand(workdir)
    backend.use_compilation_cache()
    interrupt = Interrupt()
    try:
        with interrupt.installed():
            summary = Run(parse_config(plain), folder, interrupt).run(tuple(stages))
    except Interrupted as stopped:
        if interrupt.number == signal.SIGINT:
            raise KeyboardInterrupt(str(stopped)) from None
        raise
    return Result(summary, folder)


def open_data(path: PathLike, kind: str = "", **options: Any) -> Dataset:
    """Returns a data set as an experiment with the same options uses it.

    A table of a teacher's logits must be in the order of its training images.

    Args:
        path: a folder of images, an npz file, a folder of parquet files.
        kind: the kind of the data; by default detected.
        **options: further fields of `kdjax.data.own.OwnData`.

    Raises:
        UserError: there is no data, or it does not fit into memory.
    """
    name = kind or own_data.find_kind(str(path))
    images = own_data.open_own({"name": name, "path": str(path), **options})
    if not isinstance(images, Dataset):
        raise UserError(f"{path} does not fit into memory: it can only be streamed")
    return images


def _data(data: Data, test: tuple[Any, Any] | None) -> str:
    if not isinstance(data, tuple):
        if not isinstance(data, str | os.PathLike):
            raise UserError(
                f"data= is a {type(data).__name__}: a path, or a tuple of images and "
                "labels"
            )
        if test is not None:
            raise UserError(
                f"test= goes with arrays: {os.fspath(data)} has its own test images, "
                "or a part of it is kept from training"
            )
        return os.fspath(data)
    if len(data) != 2:
        raise UserError(f"data= has {len(data)} entries, but must be (images, labels)")
    images, labels = data
    return own_data.register_arrays(images, labels, *(test or ()))


def _several(value: Any) -> tuple[Any, ...]:
    """Returns a sequence as a tuple, and any other value as a tuple of one entry."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        return (value,)
    return tuple(value)


def _name(network: Any) -> str:
    """Returns the name of a network in the graph of stages."""
    return network if isinstance(network, str) else models.register(network)


def _teacher(teacher: Any, model: Any, **view: Any) -> Teacher:
    """Returns the teacher."""
    name = _name(model) if model else ""
    if teacher is None:
        return Teacher(model=name, **view)
    if isinstance(teacher, Network):
        return Teacher(source=teacher.source, **view)
    if isinstance(teacher, np.ndarray):
        return Teacher(source=predictions.register(teacher), model=name, **view)
    if isinstance(teacher, str | os.PathLike):
        return Teacher(source=os.fspath(teacher), model=name, **view)
    if (function := models.as_function(teacher)) is not None:
        source = given.register(function.variables)
        return Teacher(source=source, model=_name(function), **view)
    if (variables := models.torch_variables(teacher)) is not None:
        return Teacher(source=given.register(variables), model=_name(teacher), **view)
    if not isinstance(teacher, tuple):
        return Teacher(source=_name(teacher), **view)
    if len(teacher) != 2:
        raise UserError(
            f"teacher= has {len(teacher)} entries, not a function or module, and its "
            "variables"
        )
    network, variables = teacher
    if callable(network) and not _is_module(network):
        network = models.Function(network, variables)
    return Teacher(source=given.register(variables), model=_name(network), **view)


def _is_module(thing: Any) -> bool:
    from flax import linen, nnx

    return isinstance(thing, linen.Module | nnx.Module)


def _source(start: Any) -> str:
    if isinstance(start, Network):
        return start.source
    if isinstance(start, Mapping):
        return given.register(dict(start))
    return os.fspath(start)


def _options(method: str, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns hyper-parameters by method."""
    nested = {key: dict(o) for key, o in options.items() if isinstance(o, Mapping)}
    flat = {key: o for key, o in options.items() if key not in nested}
    if not flat:
        return nested
    part = "dgkd" if method in ("takd", "dgkd_stochastic") else method
    if part not in METHODS:
        raise unknown("method of options", part, METHODS)
    return {**nested, part: {**nested.get(part, {}), **flat}}
