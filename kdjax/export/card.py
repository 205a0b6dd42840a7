"""The model card: a description of a network, its use and its training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdjax import models
from kdjax.export.table import caption, cells, columns

_LISTED = 20
"""The largest number of classes that the card names; `model.json` has all."""
_LIBRARIES = {
    "onnx": "onnxruntime",
    "stablehlo": "jax",
    "safetensors": "kdjax",
    "torch": "pytorch",
}


def card(
    about: Mapping[str, Any],
    results: Mapping[str, Any],
    settings: Mapping[str, Any],
    table: dict[str, Any] | None,
) -> str:
    """Returns a model card in Markdown, with the front matter of the Hugging Face hub.

    Args:
        about: the content of `model.json`.
        results: the content of the run's `results.json`.
        settings: the content of the stage's `stage.json`.
        table: the content of `table.json`, if there is one.
    """
    parts = [
        _front_matter(about),
        _what(about),
        _classes(about),
        "## Images\n\n" + _images(about),
        "## In Python\n\n```python\n" + "\n".join(_code(about)) + "\n```",
        _others(about),
        "## Figures\n\n" + (_table(table) if table else _accuracy(about)),
        _held_out(results),
        "## Training\n\n" + "\n".join(_training(about, results, settings)),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(about: Mapping[str, Any]) -> str:
    tags = ("image-classification", "knowledge-distillation", about["format"])
    return "\n".join(
        (
            "---",
            f"library_name: {_LIBRARIES[about['format']]}",
            "pipeline_tag: image-classification",
            "tags:",
            *(f"- {tag}" for tag in tags),
            "metrics:",
            "- accuracy",
            "---",
        )
    )


def _what(about: Mapping[str, Any]) -> str:
    height, width, channels = about["preprocessing"]["image_shape"]
    files = ", ".join(f"`{name}` ({kind})" for kind, name in about["files"].items())
    return (
        f"# {about['model']}, {about['num_classes']} classes\n\n"
        f"A classifier of images of {height}x{width} pixels and {channels} "
        f"channel{'s' if channels > 1 else ''} with {about['parameters']:,} "
        f"parameters, the stage `{about['stage']}` of an experiment in knowledge "
        f"distillation with kdjax. Files: {files}; all that programs need to know "
        "is in `model.json`."
    )


def _classes(about: Mapping[str, Any]) -> str:
    names: Sequence[str] = about["classes"]
    if not names:
        return "## Classes\n\nThey are numbers: the data set has no names for them."
    listed = ", ".join(names[:_LISTED])
    more = len(names) - _LISTED
    rest = f" and {more:,} more (in `model.json`)" if more > 0 else ""
    return f"## Classes\n\nIn the order of the logits: {listed}{rest}."


def _images(about: Mapping[str, Any]) -> str:
    how = about["preprocessing"]
    height, width, channels = how["image_shape"]
    colours = "RGB" if channels == 3 else "grey"
    text = (
        f"Upright, {colours}, scaled to just cover {height}x{width} pixels (bilinear), "
        "and centre cropped. "
    )
    mean, std = ([round(x, 6) for x in how[key]] for key in ("mean", "std"))
    if how["inside"]:
        return text + (
            "The file takes them unchanged, uint8 `[N, height, width, channels]`, "
            f"and normalises them itself (mean {mean}, deviation {std} on the scale 0 "
            "to 1)."
        )
    layout = {"NCHW": "channels, height, width", "NHWC": "height, width, channels"}
    return text + (
        "Pixels are divided by 255, the mean is subtracted, and the difference divided "
        f"by the deviation: mean {mean}, deviation {std}. The input is float32 "
        f"`[N, {layout[about['input']['layout']]}]`."
    )


def _code(about: Mapping[str, Any]) -> list[str]:
    """Returns lines of Python that classify an image."""
    if about["format"] == "safetensors":
        return [
            "import safetensors.numpy",
            "from flax.traverse_util import unflatten_dict",
            "from kdjax import models",
            "",
            'flat = safetensors.numpy.load_file("model.safetensors")',
            'variables = unflatten_dict(flat, sep="/")',
            f"network = models.create({about['model']!r}, {about['num_classes']})",
            "# images: float32 [N, height, width, channels], normalised as above",
            "# logits = network.apply(variables, images, train=False).logits",
        ]
    if about["format"] == "torch":
        return [
            "import torch",
            "",
            f"# of the module as {about['layout']} writes it:",
            'state = torch.load("model.pth", weights_only=True)',
            "# module.load_state_dict(state); module.eval()",
            "# images: float32 [N, channels, height, width], normalised as above",
        ]
    how = about["preprocessing"]
    height, width, channels = how["image_shape"]
    mode = "RGB" if channels == 3 else "L"
    first = "import jax" if about["format"] == "stablehlo" else "import onnxruntime"
    lines = [
        "import json",
        "from pathlib import Path",
        "",
        first,
        "import numpy as np",
        "from PIL import Image, ImageOps",
        "",
        'about = json.loads(Path("model.json").read_text())',
        f'image = Image.open("image.png").convert("{mode}")',
        f"image = ImageOps.fit(image, ({width}, {height}), Image.Resampling.BILINEAR)",
        f"images = np.asarray(image).reshape(1, {height}, {width}, {channels})",
    ]
    if not how["inside"]:
        lines += [
            'mean, std = (np.float32(about["preprocessing"][k]) for k in '
            '("mean", "std"))',
            "images = (images / np.float32(255) - mean) / std",
        ]
    if about["input"]["layout"] == "NCHW":
        lines += ["images = images.transpose(0, 3, 1, 2)"]
    if about["format"] == "stablehlo":
        lines += [
            'program = bytearray(Path("model.stablehlo").read_bytes())',
            "logits = np.asarray(jax.export.deserialize(program).call(images))",
        ]
        lines[lines.index("import jax")] = "import jax.export"
    else:
        lines += [
            f'session = onnxruntime.InferenceSession("{about["files"]["float32"]}")',
            '(logits,) = session.run(None, {"images": images})',
        ]
    answer = "logits[0].argmax()"
    return (
        [*lines, f'print(about["classes"][{answer}])']
        if about["classes"]
        else [
            *lines,
            f"print({answer})",
        ]
    )


def _others(about: Mapping[str, Any]) -> str:
    if about["format"] != "onnx":
        return ""
    return (
        "Many images, with probabilities: "
        "`python -m kdjax.predict THIS_FOLDER image.png more/`."
    )


def _accuracy(about: Mapping[str, Any]) -> str:
    accuracy = about["test_accuracy"].get("float32")
    if accuracy is None:
        return "The accuracy on test images is not known."
    return f"Accuracy on the run's test images: {100 * accuracy:.2f} %."


def _held_out(results: Mapping[str, Any]) -> str:
    """Returns a sentence on the test images, if they are not the data set's own."""
    count = results["config"]["data"].get("validation")
    if not count:
        return ""
    return (
        f"In place of the data set's test images these are {count:,} of its training "
        "images, held out of training."
    )


def _table(table: dict[str, Any]) -> str:
    names = columns()
    lines = [
        f"| {' | '.join(names)} |",
        f"|{'---|' * 3}{'--:|' * (len(names) - 3)}",
        *(f"| {' | '.join(cells(row))} |" for row in table["rows"]),
        "",
        caption(table),
        *table["notes"],
    ]
    return "\n".join(lines)


def _training(
    about: Mapping[str, Any], results: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[str]:
    """Returns the list of training details."""
    stage, data = results["stages"][about["stage"]], results["config"]["data"]
    path = Path(data["path"]).name if data.get("path") else ""
    count = settings["data"]["train_size"]
    teachers = [
        f"{name} ({models.inner(results['stages'][name]['model'])})"
        for name in stage["teachers"]
    ]
    lines = [
        f"- data: {data['name']} {path}".rstrip() + f", {count:,} training images",
        f"- method: {stage['method']}"
        + (f", taught by {', '.join(teachers)}" if teachers else ""),
    ]
    if given := stage.get("given"):
        names = ", ".join(Path(one).name for one in given)
        lines = [f"- imported from {names}, not trained here"]
    elif recipe := settings.get("recipe"):
        lines.append(
            f"- {recipe['epochs']} epochs, batches of {recipe['batch_size']}, "
            f"{recipe['optimizer']}, learning rate {recipe['learning_rate']:g}, "
            f"precision {settings['precision']}"
        )
    seeds = len(stage["fingerprint"])
    lines += [
        f"- seed {about['seed']} of {seeds}, fingerprint `{about['fingerprint']}`",
        f"- trained with kdjax {settings.get('kdjax', 'of an earlier version')}, "
        f"exported with kdjax {about['kdjax']}",
    ]
    return lines
