"""Reads and checks the model.json of an exported model."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from kdjax.runtime.errors import UserError, unknown

NAME = "model.json"
VERSION = 1
"""The newest version of model.json that this version of kdjax reads."""

FORMATS = ("onnx", "stablehlo")
DTYPES = ("float32", "uint8")
LAYOUTS = ("NCHW", "NHWC")
FITS = ("cover",)
"""Ways to resize an image; 'cover' is `kdjax.data.pixels.view`."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What is needed to run one network of a model's folder.

    Attributes:
        path: the network's file.
        format: 'onnx' or 'stablehlo'.
        classes: their names, or their numbers if the model has no names.
        input_name: the name of the input, the images.
        output_name: the name of the output, the logits.
        dtype: of the images: 'float32' if they are normalised before, 'uint8' if the
            network normalises them.
        layout: 'NCHW' or 'NHWC'.
        image_shape: height, width and channels.
        mean: of the channels, on the scale 0 to 1.
        std: standard deviation of the channels.
        content: the content of model.json.
    """

    path: Path
    format: str
    classes: tuple[str, ...]
    input_name: str
    output_name: str
    dtype: str
    layout: str
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    content: Mapping[str, Any] = dataclasses.field(repr=False)


def read(folder: Path, int8: bool = False) -> Description:
    """Returns the description of a network in a model's folder.

    Args:
        folder: the model's, with model.json.
        int8: whether to use the quantised network.

    Raises:
        UserError: there is no such folder; model.json is damaged, of a newer version or
            of a format that cannot be run; or the network's file is missing.
    """
    file = folder / NAME
    if not folder.is_dir():
        raise UserError(
            f"{folder} is a file; give its folder, with {NAME}"
            if folder.exists()
            else f"no such folder: {folder}"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"there is no {NAME} in {folder}; python -m kdjax.export writes it"
        ) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # no JSON, or no text
        raise UserError(f"{file} is damaged: {error}") from error
    return _Reader(file).description(content, int8)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the values of one model.json; its messages name the file and the key."""

    file: Path

    def description(self, content: Any, int8: bool) -> Description:
        root = self.mapping(content, "its content")
        version = self.integer(root, "version")
        if version > VERSION:
            raise UserError(
                f"{self.file} is of version {version}, and this kdjax reads up to "
                f"{VERSION}; upgrade kdjax"
            )
        form = self.text(root, "format")
        if form not in FORMATS:
            raise UserError(
                f"{self.file.parent} is of the format {form!r}; predict reads "
                f"{' and '.join(FORMATS)}"
            )
        images = self.mapping(root.get("input"), "input")
        steps = self.mapping(root.get("preprocessing"), "preprocessing")
        self.choice(steps, "fit", FITS)
        dtype = self.choice(images, "dtype", DTYPES)
        if steps.get("inside") is not (dtype == "uint8"):
            self.fail(f"inside={steps.get('inside')!r} with dtype={dtype!r}")
        shape = steps.get("image_shape")
        if not (
            isinstance(shape, list)
            and len(shape) == 3
            and all(isinstance(side, int) and side > 0 for side in shape)
            and shape[2] in (1, 3)
        ):
            self.fail(f"image_shape={shape!r}; it is height, width and channels (1, 3)")
        return Description(
            path=self.network(root, "int8" if int8 else "float32"),
            format=form,
            classes=self.classes(root),
            input_name=self.text(images, "name"),
            output_name=self.text(root, "output"),
            dtype=dtype,
            layout=self.choice(images, "layout", LAYOUTS),
            image_shape=(shape[0], shape[1], shape[2]),
            mean=self.numbers(steps, "mean", shape[2]),
            std=self.numbers(steps, "std", shape[2], above=0.0),
            content=root,
        )

    def network(self, root: Mapping[str, Any], kind: str) -> Path:
        files = self.mapping(root.get("files"), "files")
        if kind not in files:
            raise UserError(
                f"{self.file.parent} has no {kind} network, but "
                f"{', '.join(files) or 'none'}"
                + ("; python -m kdjax.export --int8 makes one" * (kind == "int8"))
            )
        name = self.text(files, kind)
        # Only files in the folder: it may come from somebody else.
        if Path(name).name != name:
            self.fail(f"files: {kind}={name!r} is not in its folder")
        path = self.file.with_name(name)
        if not path.is_file():
            raise UserError(f"{path}, which {NAME} names, is missing")
        return path

    def classes(self, root: Mapping[str, Any]) -> tuple[str, ...]:
        count, names = self.integer(root, "num_classes"), root.get("classes")
        if count < 1:
            self.fail(f"num_classes={count}")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            self.fail("classes is not a list of names")
        if names and len(names) != count:
            self.fail(f"there are {len(names)} classes, but num_classes={count}")
        return tuple(names) or tuple(map(str, range(count)))

    def numbers(
        self, values: Mapping[str, Any], key: str, count: int, above: float = -math.inf
    ) -> tuple[float, ...]:
        found = values.get(key)
        if not (
            isinstance(found, list)
            and len(found) == count
            and all(isinstance(value, int | float) for value in found)
            and all(above < value < math.inf for value in found)
        ):
            positive = "positive " * (above == 0)
            self.fail(f"{key}={found!r}; it is {count} {positive}numbers")
        return tuple(map(float, found))

    def choice(
        self, values: Mapping[str, Any], key: str, choices: tuple[str, ...]
    ) -> str:
        value = self.text(values, key)
        if value not in choices:
            raise unknown(f"{key} in {self.file}:", value, choices)
        return value

    def integer(self, values: Mapping[str, Any], key: str) -> int:
        value = values.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(f"{key}={value!r} is not an integer")
        return value

    def text(self, values: Mapping[str, Any], key: str) -> str:
        value = values.get(key)
        if not isinstance(value, str):
            self.fail(f"{key}={value!r} is not text")
        return value

    def mapping(self, value: Any, what: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self.fail(f"{what} is not a JSON object")
        return value

    def fail(self, what: str) -> NoReturn:
        raise UserError(f"{self.file} is damaged: {what}")
