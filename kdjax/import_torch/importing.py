"""The command's work: inspect, map, evaluate and write."""

from pathlib import Path

from flax.traverse_util import flatten_dict

from kdjax import models
from kdjax.data import own, sources
from kdjax.data.sources import Dataset
from kdjax.models import import_torch
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError
from kdjax.runtime.files import expand
from kdjax.train.prediction import Predictor
from kdjax.train.saved_network import SavedNetwork, check_free, save_network

_BATCH = 256


class Import:
    """A file of PyTorch tensors and the network that it holds."""

    def __init__(self, path: Path, model: str | None = None, out: Path | None = None):
        """Reads the file.

        Args:
            path: of the file.
            model: the network's name; None: the one whose tensors the file has.
            out: the folder to write to, if any.

        Raises:
            UserError: the file cannot be read or is of another network; the folder
                holds a network already.
        """
        if out:
            check_free(out)  # before the work, not after it
        self._path, self._out = path, out
        self._found = found = import_torch.inspect(path)
        self._fits = {
            layout: guess
            for layout, guess in found.guesses.items()
            if model in (None, guess.model)
        }
        if self._fits:
            guess = next(iter(self._fits.values()))
        elif model is None or found.num_classes is None:
            raise UserError(
                f"{path} holds no network that can be imported: {found.seems}"
            )
        else:  # for which `rows_of` raises the error with the keys that differ
            guess = import_torch.Guess(model, found.num_classes, (32, 32, 3))
        self._read = (guess.model, guess.num_classes, guess.image_shape)
        _, rows = import_torch.rows_of(path, *self._read)
        self._rows = {row.key: row for row in rows}

    def show(self, rows: int) -> None:
        """Prints what the file holds and the first rows of the mapping."""
        found = self._found
        wrapped = "".join(f"[{key!r}]" for key in found.wrapping)
        lines = [
            f"{self._path}: {found.format}"
            + (f", state dict in {wrapped}" if wrapped else "")
            + (f", all keys start with {found.prefix!r}" if found.prefix else ""),
            f"{len(found.keys)} tensors, {found.num_values:,} values",
        ]
        for layout, guess in self._fits.items():
            lines.append(f"fits {guess}, by the names of {layout.name}")
        shapes = flatten_dict(models.shapes(*self._read))
        width = max(map(len, found.keys))
        for key in found.keys[:rows]:
            row = self._rows[key]
            sizes = f"{list(row.shape)} -> {list(shapes[row.path].shape)}"
            lines.append(f"  {key:{width}}  {'/'.join(row.path)}  {sizes}")
        if rows < len(found.keys):
            lines.append(f"  and {len(found.keys) - rows} more")
        for line in lines:
            console.print(line, markup=False)

    def evaluate(
        self,
        name: str,
        data_dir: Path | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        """Prints the network's accuracy on a data set's test images.

        Args:
            name: of the data set, or the path of one's own images.
            data_dir: the folder of all data sets; None means TFDS's.
            mean: of each channel, on the scale 0 to 1; None means the data set's.
            std: standard deviation of each channel, as `mean`.

        Raises:
            UserError: there is no such data set, or its images or classes do not match
                the network.
        """
        dataset = _open(name, data_dir)
        mean, std = mean or dataset.mean, std or dataset.std
        channels = dataset.image_shape[-1]
        for what, given in (("mean", mean), ("std", std)):
            if len(given) not in (1, channels):
                raise UserError(
                    f"--{what} has {len(given)} numbers; the images of {name} have "
                    f"{channels} channels"
                )
        if min(std) <= 0:
            raise UserError(f"--std={std}: deviations must be positive")
        model, num_classes, _ = self._read
        if dataset.num_classes != num_classes:
            raise UserError(
                f"{self._path} has {num_classes} classes, {name} {dataset.num_classes}"
            )
        variables = import_torch.load(
            self._path, model, num_classes, dataset.image_shape
        )
        self._read = model, num_classes, dataset.image_shape
        predictor = Predictor(model, num_classes, mean, std)
        logits = predictor.logits(variables, dataset.test.images)
        right = logits.argmax(axis=1) == dataset.test.labels
        console.print(
            f"test accuracy on {name}: {100 * right.mean():.2f} % "
            f"({right.sum():,} of {len(right):,})",
            markup=False,
        )

    def write(self) -> None:
        """Writes the network to its folder and prints a line."""
        assert self._out is not None
        variables = import_torch.load(self._path, *self._read)
        network = SavedNetwork(*self._read, source=self._path.name)
        save_network(self._out, network, variables)
        console.print(f"{self._out} written", markup=False)


def _open(name: str, data_dir: Path | None) -> Dataset:
    """Returns a data set by its name, or one's own by its path."""
    if name in sources.SOURCES or not expand(name).exists():
        return sources.load(name, str(data_dir) if data_dir else None)
    dataset = own.open_own({"name": own.find_kind(name), "path": name})
    if not isinstance(dataset, Dataset):
        raise UserError(f"{name} does not fit into memory")
    return dataset
