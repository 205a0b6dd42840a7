"""Two students, each alone and taught by a network that another run trained.

    python -m kdjax.main --workdir runs/students --config docs/examples/pretrained.py

Arguments: data=photos/, teacher=runs/teacher:teacher, epochs=20, seeds=3. Both students
see the same augmented images, so the teacher's logits of them are computed once.
"""

import dataclasses

from ml_collections import ConfigDict

from kdjax.experiment import builders, own
from kdjax.experiment.teachers import Teacher

STUDENTS = {"resnet": "resnet-20", "mobilenet": "timm:mobilenetv3_small_100"}
ARGUMENTS = {"data": str, "teacher": str, "epochs": int, "seeds": int}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config: its stages are NAME_alone and NAME for each of `STUDENTS`."""
    _, values = builders.parse_arg(arg, ("",), ARGUMENTS)
    taught = own.Request(
        data=values.get("data", "photos/"),
        student="resnet-20",
        teacher=Teacher(source=values.get("teacher", "runs/teacher:teacher")),
        epochs=values.get("epochs", 20),
        seeds=values.get("seeds", 3),
    )
    config = own.config(taught)
    recipe = config.recipe.to_dict()
    stages = {"teacher": config.stages.teacher}
    for name, network in STUDENTS.items():
        request = dataclasses.replace(taught, student=network)
        alone = dataclasses.replace(request, method="supervised", teacher=Teacher())
        for stage, wanted in ((f"{name}_alone", alone), (name, request)):
            made = own.config(wanted)
            stages[stage] = made.stages.student
            stages[stage].recipe = {
                key: value for key, value in made.recipe.items() if value != recipe[key]
            }
    config.stages = ConfigDict(stages)
    return config
