"""The export of a finished stage's network: written, verified, measured, described."""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import __version__, models
from kdjax.data import sources
from kdjax.data.streaming.dataset import Images, Streamed
from kdjax.experiment import finished
from kdjax.experiment.finished import Finished
from kdjax.experiment.predictions import is_table
from kdjax.export import images as run_images
from kdjax.export import tensors, verify
from kdjax.export.deployed import Deployed
from kdjax.export.description import deploy, describe, parameters, preprocessing
from kdjax.export.images import Part
from kdjax.export.options import FILES, GRAPHS, INT8, Options
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import write_json

OWN_NAMES = "module"
"""The layout of a network of PyTorch: the names of its own state dict."""
_BATCH = 32  # of calibration


def export(
    workdir: Path, stage: str, out: Path, options: Options, seed: int = 0
) -> dict[str, Any]:
    """Writes the network of a finished stage to a new folder.

    The folder holds the network, `model.json`, the model card `README.md`, and for ONNX
    `table.json`. It is written as a whole or not at all.

    Args:
        workdir: the experiment's.
        stage: the stage's name.
        out: the folder to write; it must be new or empty.
        options: the format and its options.
        seed: the replica's number.

    Returns:
        The content of `model.json`.

    Raises:
        UserError: there is no such network, the run's images are missing, a package is
            not installed, an operation has no counterpart in the format, the file's
            logits differ from kdjax's, or the folder is not empty.
    """
    options.check_installed()
    _check_free(out)
    results = finished.results_of(workdir)
    found = finished.find(workdir, stage, seed)
    _check_network(found, results["stages"][stage], f"{workdir}: stage {stage!r}")
    export = _Export(workdir, stage, seed, options, results, found)
    with _folder_beside(out) as folder, contextlib.ExitStack() as held:
        about, table = export.write(folder, held)
    if table is not None:
        from kdjax.export.table import show

        show(table)
    console.print(f"{out} written", markup=False)
    return about


class _Export:
    """The export of one network to a folder."""

    def __init__(
        self,
        workdir: Path,
        stage: str,
        seed: int,
        options: Options,
        results: Mapping[str, Any],
        found: Finished,
    ):
        self._workdir, self._stage, self._seed = workdir, stage, seed
        self._options, self._results, self._found = options, results, found
        self._network = deploy(found)
        self._section = results["config"]["data"]

    def write(
        self, folder: Path, held: contextlib.ExitStack
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Fills the folder; returns the content of `model.json` and `table.json`."""
        options, found = self._options, self._found
        path, table, images = folder / FILES[options.format], None, None
        about = describe(
            self._network, found, self._stage, self._seed, options, self._classes()
        )
        if options.format in GRAPHS:
            images = run_images.open_of(found, self._section, options.data)
            if isinstance(images, Streamed):
                held.enter_context(images)
            about["classes"] = list(self._classes(images))
            test = self._graph(path, images)
            if options.format == "onnx":
                table = self._measured(folder, images, test)
                about["test_accuracy"] = {
                    row["precision"]: row["test_accuracy"]
                    for row in table["rows"]
                    if row["role"] == "student"
                }
                write_json(folder / "table.json", table)
        else:
            about |= self._tensors(path)
        write_json(folder / "model.json", about)
        settings = finished.settings_of(found.folder)
        from kdjax.export.card import card

        text = card(about, self._results, settings, table)
        (folder / "README.md").write_text(text)
        return about, table

    def _graph(self, path: Path, images: Images) -> Part:
        """Writes and verifies a file that computes logits; returns test images."""
        options = self._options
        most = run_images.MOST if options.format == "onnx" else verify.IMAGES
        test = run_images.take(images, "test", most)
        some = test.some(verify.IMAGES)
        with _float32():
            expected = verify.reference(self._network, some.images)
            _write_graph(self._network, path, options)
            prepare = preprocessing(self._network, options)
            if options.format == "onnx":
                from kdjax.export.sessions import Session

                logits = Session(path, prepare, self._threads).logits(some.images)
            else:
                from kdjax.export import stablehlo

                with jax.default_matmul_precision("float32"):
                    inputs = jnp.asarray(prepare(some.images))
                    logits = np.asarray(stablehlo.load(path)(inputs))
        verify.check(logits, expected, some, path.name)
        return test

    def _tensors(self, path: Path) -> dict[str, Any]:
        """Writes and verifies a file of tensors; returns entries for `model.json`."""
        found, options = self._found, self._options
        if options.format == "safetensors":
            about = {
                "format": "kdjax",
                "model": found.model,
                "num_classes": str(found.num_classes),
                "image_shape": json.dumps(found.image_shape),
                "fingerprint": found.result["fingerprint"],
                "kdjax": __version__,
            }
            tensors.write_safetensors(self._network, path, about)
            return {"model": found.model}
        name = models.inner(found.model)
        files = self._results["stages"][self._stage].get("given", [])
        layout = options.layout or (
            OWN_NAMES
            if models.torch_network(found.model, found.num_classes) is not None
            else tensors.layout_of(name, found.image_shape, found.num_classes, files)
        )
        tensors.write_torch(self._network, name, path, layout)
        return {"layout": layout}

    def _measured(self, folder: Path, images: Images, test: Part) -> dict[str, Any]:
        """Writes the quantised network, if requested, and measures all networks."""
        from kdjax.export import table

        options = self._options
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            teachers, notes = self._teachers(Path(scratch))
            student = self._entry(
                self._stage, "student", self._network, folder / FILES["onnx"]
            )
            entries = [*teachers, student]
            if options.int8:
                self._quantise(folder, images)
                path, precision = folder / INT8, "int8"
                entries.append(
                    dataclasses.replace(student, path=path, precision=precision)
                )
            return table.make(entries, test, notes, self._threads)

    def _teachers(self, scratch: Path) -> tuple[list[Any], list[str]]:
        """Returns the teachers to measure, and lines about those that cannot be."""
        entries, notes, stages = [], [], self._results["stages"]
        for number, name in enumerate(stages[self._stage]["teachers"]):
            try:
                seed = self._seed % len(stages[name]["fingerprint"])
                found = finished.find(self._workdir, name, seed)
                _check_network(found, stages[name], f"teacher {name!r}")
                network = deploy(found)
                path = scratch / f"{number}.onnx"
                with _float32():
                    _write_graph(network, path, self._options)
            except UserError as error:
                notes.append(f"{name} is not in the table: {error}")
                continue
            entries.append(self._entry(name, "teacher", network, path))
        return entries, notes

    def _entry(self, stage: str, role: str, network: Deployed, path: Path) -> Any:
        from kdjax.export.table import Entry

        return Entry(
            stage=stage,
            role=role,
            model=models.inner(network.model),
            precision="float32",
            parameters=parameters(network),
            path=path,
            prepare=preprocessing(network, self._options),
        )

    def _quantise(self, folder: Path, images: Images) -> None:
        from kdjax.export.int8 import quantise

        options = self._options
        part = run_images.take(images, "train", options.calibration)
        prepare = preprocessing(self._network, options)
        batches = (
            prepare(part.images[start : start + _BATCH])
            for start in range(0, len(part.images), _BATCH)
        )
        quantise(
            folder / FILES["onnx"],
            folder / INT8,
            batches,
            activations=options.activations,
        )

    @property
    def _threads(self) -> int:
        from kdjax.export.table import threads_here

        return self._options.threads or threads_here()

    def _classes(self, images: Images | None = None) -> tuple[str, ...]:
        """Returns the names of the classes, from the first source that has them."""
        known = self._found.classes or (images.classes if images else ())
        if known:
            return known
        place = self._options.data or self._section.get("dir")
        return sources.class_names(self._section["name"], place and str(place))


def _write_graph(network: Deployed, path: Path, options: Options) -> None:
    if options.format == "onnx":
        from kdjax.export import onnx

        opset = options.opset or onnx.DEFAULT
        onnx.write(network, path, uint8=options.uint8, opset=opset)
    else:
        from kdjax.export import stablehlo

        stablehlo.write(network, path, uint8=options.uint8)


def _float32() -> contextlib.AbstractContextManager[None]:
    """Turns float64 off inside the block, also if the process has turned it on."""
    return jax.enable_x64(False)


def _check_network(found: Finished, stage: Mapping[str, Any], what: str) -> None:
    """Raises UserError for given predictions and functions: they have no network."""
    if is_table(stage.get("given", ())):
        raise UserError(f"{what} is a table of predictions: there is no network")
    if models.is_function(models.inner(found.model)):
        raise UserError(f"{what} is a plain function: there is no network")


def _check_free(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose a new folder")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose another folder")


@contextlib.contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `out` at the end of the block.

    After an error it is removed.

    Raises:
        UserError: the folder cannot be made.
    """
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)  # folders of mkdtemp are readable by their owner only
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
