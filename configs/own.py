"""One's own images, networks and teachers.

    python -m kdjax.main --workdir runs/mine --config \
        configs/own.py:data=photos/,teacher=teacher.pth,teacher_model=resnet-20,student=resnet-8

Arguments, besides epochs, batch_size, train_size, test_size and seeds:

    data=photos/      a folder with a folder for every class, below train/ and test/ or
                      without; an npz file with `images` and `labels`; a folder of
                      parquet files; with kind=tfds the name of a data set that TFDS
                      prepared, in dir=
    image_size=32     height and width that networks see
    test_share=0.2    kept from training where there are no test images
    memory_share=0.25  broken=skip  image_column=image  label_column=label  workers=2
                      see `kdjax.data.own.OwnData`
    student=resnet-8  a network, or package.module:Class(width=32) of linen, NNX or
                      PyTorch, or timm:resnet18, torchvision:resnet18
    teacher=resnet-56 a network, which is trained first; or a file of PyTorch weights,
                      with teacher_model=; or logits of the training images, logits.npy,
                      several joined by '+'; or a finished stage, runs/other:expert
    teacher_weights=mine.safetensors
                      of the network that teacher= names, in PyTorch or kdjax; without
                      it, timm and torchvision download theirs
    teacher_size=224  height and width that the teacher sees, if they are others
    teacher_train=head
                      what is trained first of a PyTorch teacher of other classes: its
                      new head, or all
    teacher_mean=0.5/0.5/0.5  teacher_std=0.2/0.2/0.2  class_order=2/0/1
                      as the teacher learned to see images and classes
    student_levels=a+b  teacher_levels=a+b
                      paths of a network's modules whose outputs are its levels, for
                      methods that compare features
    method=kd         any method, several joined by '+'; or takd, dgkd, dgkd_stochastic
    chain=resnet-32/resnet-20
                      networks between teacher and student
    start=weights.pth what the student starts from
    augment=none      leaves training images as they are
    optimizer=adamw  learning_rate=0.001  ema=0.999  mixup=0.2  label_smoothing=0.1
                      and all other fields of the recipe

What is left open is chosen by the size of the data and printed; every field is a flag
as well, such as --config.recipe.weight_decay=0.01.

Hardware: small images of some thousand take minutes on CPU cores; else a GPU or TPU.
"""

import dataclasses

from ml_collections import ConfigDict

from kdjax.experiment import builders, own
from kdjax.experiment.teachers import Teacher
from kdjax.train.recipe import Recipe

_DATA = {
    "image_size": int,
    "test_share": float,
    "memory_share": float,
    "broken": str,
    "workers": int,
    "image_column": str,
    "label_column": str,
    "dir": str,
    "train_size": int,
    "test_size": int,
}
_RECIPE = {
    field.name: type(field.default)
    for field in dataclasses.fields(Recipe)
    if type(field.default) in (int, float, str)
}
ARGUMENTS: builders.Arguments = {
    **builders.SHRINK,
    **_DATA,
    **_RECIPE,
    **dict.fromkeys(
        (
            "data",
            "kind",
            "student",
            "student_levels",
            "teacher",
            "teacher_model",
            "teacher_levels",
            "teacher_weights",
            "teacher_size",
            "teacher_train",
            "teacher_mean",
            "teacher_std",
            "class_order",
            "method",
            "chain",
            "start",
            "augment",
        ),
        str,
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of one's own parts, as the arguments name them."""
    _, values = builders.parse_arg(arg, ("",), ARGUMENTS)
    levels = {
        who: tuple(word for word in values.get(f"{who}_levels", "").split("+") if word)
        for who in ("student", "teacher")
    }
    teacher = Teacher(
        source=values.get("teacher", ""),
        model=values.get("teacher_model", ""),
        mean=builders.numbers("teacher_mean", values.get("teacher_mean", ""), float),
        std=builders.numbers("teacher_std", values.get("teacher_std", ""), float),
        order=builders.numbers("class_order", values.get("class_order", ""), int),
        levels=levels["teacher"],
        weights=values.get("teacher_weights", ""),
        size=builders.numbers("teacher_size", values.get("teacher_size", ""), int),
        train=values.get("teacher_train", "head"),
    )
    return own.config(
        own.Request(
            data=values.get("data", ""),
            kind=values.get("kind", ""),
            data_options={key: values[key] for key in _DATA if key in values},
            student=values.get("student", ""),
            student_levels=levels["student"],
            teacher=teacher,
            method=values.get("method", "kd"),
            chain=tuple(word for word in values.get("chain", "").split("/") if word),
            start=values.get("start", ""),
            epochs=values.get("epochs", 0),
            batch_size=values.get("batch_size", 0),
            seeds=values.get("seeds", 1),
            recipe={
                key: values[key]
                for key in _RECIPE
                if key in values and key not in ("epochs", "batch_size")
            },
            augment=values.get("augment", "default"),
        )
    )
