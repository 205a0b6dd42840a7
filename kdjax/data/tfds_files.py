"""Data sets prepared by TFDS, decoded once into arrays, without TensorFlow.

A prepared data set is the folder `<data_dir>/<tfds name>/<version>` with array_record
files. Decoding its images takes a core some twenty seconds for CIFAR, so the arrays
are kept in a cache folder: `$KDJAX_CACHE`, or `kdjax` in the user's cache folder.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import shlex
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import absl.logging
import numpy as np
from PIL import Image

from kdjax.data import pixels
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import cache_folder, expand

_CHUNK = 1000  # records fetched at once: array_record reads them in parallel


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set's newest prepared version on disk.

    Attributes:
        name: kdjax's name of the data set.
        path: the folder of this version.
        sizes: the number of examples of each split.
        info: the content of TFDS's dataset_info.json.
        own: whether it is a data set of the user's, not a key of `sources.SOURCES`.
    """

    name: str
    path: pathlib.Path
    sizes: dict[str, int]
    info: dict[str, Any]
    own: bool = False

    @property
    def version(self) -> str:
        """The version, such as '3.0.2'."""
        return self.path.name


def default_data_dir() -> pathlib.Path:
    """Returns the folder in which TFDS keeps data sets by default."""
    return expand(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def prepare_command(
    name: str, data_dir: os.PathLike[str] | str, own: bool = False
) -> str:
    """Returns how to get a data set: a command, or for ImageNet two steps."""
    if own:
        return (
            f"tfds build {shlex.quote(name)} --file_format=array_record --data_dir "
            f"{shlex.quote(str(data_dir))} (TFDS needs TensorFlow for that)"
        )
    if name == "imagenet":
        folder = pathlib.Path(data_dir)
        script = (
            "import tensorflow_datasets as tfds; "
            f'tfds.builder("imagenet2012", data_dir={json.dumps(str(data_dir))}, '
            'file_format="array_record").download_and_prepare()'
        )
        return (
            "two steps: put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
            f"image-net.org into {folder / 'downloads' / 'manual'}; then, with "
            "tensorflow-cpu and tensorflow-datasets installed, run "
            f"python -c {shlex.quote(script)}"
        )
    return (
        f"python -m kdjax.data.prepare {name} --data-dir {shlex.quote(str(data_dir))}"
    )


def find(
    name: str,
    tfds_name: str,
    data_dir: pathlib.Path,
    version: str | None = None,
    own: bool = False,
) -> Prepared | None:
    """Looks for a prepared data set; needs no import of TFDS and no network.

    Args:
        name: kdjax's name of the data set, for messages.
        tfds_name: TFDS's name of it.
        data_dir: the folder of all data sets.
        version: the version to use; None: the newest.
        own: see `Prepared`.

    Returns:
        The newest version in `data_dir`, or None if there is none.

    Raises:
        UserError: the description cannot be read or the files are not array_record.
    """
    descriptions = (data_dir / tfds_name).glob("*/dataset_info.json")
    versions = [
        info.parent
        for info in descriptions
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
        and version in (None, info.parent.name)
    ]
    if not versions:
        return None
    newest = max(versions, key=lambda path: [int(n) for n in path.name.split(".")])
    try:
        info = json.loads((newest / "dataset_info.json").read_text())
        # Old versions of TFDS knew one format, and did not name it.
        file_format = info.get("fileFormat", "tfrecord")
        sizes = {
            split["name"]: sum(map(int, split["shardLengths"]))
            for split in info["splits"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        broken = Prepared(name, newest, {}, {}, own)
        raise damaged(broken, f"dataset_info.json: {error}") from error
    if file_format != "array_record":
        raise UserError(
            f"data set {name!r} in {newest} is stored as {file_format}, which cannot "
            "be read without TensorFlow; provide it as array_record in another folder: "
            + prepare_command(name, "DIR", own)
        )
    return Prepared(name, newest, sizes, info, own)


def locate(
    name: str,
    tfds_name: str,
    dir: str | None,
    version: str | None = None,
    own: bool = False,
) -> Prepared:
    """Returns a prepared data set.

    Args:
        name: kdjax's name of the data set.
        tfds_name: TFDS's name of it.
        dir: the folder of all data sets; by default TFDS's own.
        version: the version to use; None: the newest.
        own: see `Prepared`.

    Raises:
        UserError: it is missing (the message shows how to get it); or as for `find`.
    """
    folder = expand(dir or default_data_dir())
    prepared = find(name, tfds_name, folder, version, own)
    if prepared is None:
        raise UserError(
            f"data set {name!r} not found in {folder / tfds_name}; "
            f"provide it with: {prepare_command(name, folder, own)}"
        )
    return prepared


def class_names(prepared: Prepared) -> tuple[str, ...]:
    """Returns the classes' names from the feature 'label'; empty if it has none."""
    try:
        return tuple((prepared.path / "label.labels.txt").read_text().splitlines())
    except OSError:
        return ()


def read(prepared: Prepared, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split into memory, from the cache if it has these files.

    Args:
        prepared: the data set.
        split: the name that TFDS gives the split.

    Returns:
        Images, uint8 [N, H, W, C], and labels, int32 [N], in the files' order.

    Raises:
        UserError: a file is missing or damaged.
    """
    cached = cache_folder() / (
        f"{prepared.path.parent.name}-{prepared.version}-{split}-{digest_of(prepared)}.npz"
    )
    # The npz format has checksums: a damaged file is an error here, and is rewritten.
    with (
        contextlib.suppress(
            OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error
        ),
        open(cached, "rb") as file,
        np.load(file) as arrays,
    ):
        return arrays["images"], arrays["labels"]
    images, labels = _decode(prepared, split)
    with contextlib.suppress(OSError):  # the cache only saves time
        write_arrays(cached, {"images": images, "labels": labels})
    return images, labels


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Silences TFDS's logging and output, such as its banner about TensorFlow."""
    loggers = absl.logging.get_absl_logger(), logging.getLogger("urllib3")
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _decode(prepared: Prepared, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Decodes one split with PIL (threads gain nothing on images this small)."""
    with quiet_tfds():
        import tensorflow_datasets as tfds  # takes a second: not for `import kdjax`

        try:
            builder = tfds.builder_from_directory(prepared.path)
            source = builder.as_data_source(
                split, decoders={"image": tfds.decode.SkipDecoding()}
            )
            images = np.empty(
                (len(source), *builder.info.features["image"].shape), np.uint8
            )
            labels = np.empty(len(source), np.int32)
            for start in range(0, len(source), _CHUNK):
                rows = list(range(start, min(start + _CHUNK, len(source))))
                for row, example in zip(rows, source.__getitems__(rows), strict=True):
                    with Image.open(io.BytesIO(example["image"])) as image:
                        pixels.check_large(image)
                        # Some of Tiny ImageNet's files are grayscale.
                        images[row] = image.convert("RGB")
                    labels[row] = example["label"]
        except (RuntimeError, ValueError, KeyError, IndexError, OSError) as error:
            raise damaged(prepared, f"{split}: {error}") from error
    return images, labels


def damaged(prepared: Prepared, what: str) -> UserError:
    """Returns the error for a prepared data set whose files cannot be read."""
    name, path = prepared.name, prepared.path
    # <data_dir>/<name>/<version>, or <data_dir>/<name>/<config>/<version>.
    data_dir = path.parents[1 + name.count("/") * prepared.own]
    command = prepare_command(name, data_dir, prepared.own)
    return UserError(
        f"data set {name!r} in {path} is damaged ({what.splitlines()[0]}); delete that "
        f"folder and provide it again with: {command}"
    )


def digest_of(prepared: Prepared) -> str:
    """Returns a hash that changes when the folder, its description or a file does."""
    files = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(prepared.path.glob("*.array_record*"))
    ]
    content = json.dumps([str(prepared.path.resolve()), prepared.info, files])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def write_arrays(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Writes an npz file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: renaming is atomic only within a file system.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
