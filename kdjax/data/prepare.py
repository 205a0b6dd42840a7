"""Prepares a data set: python -m kdjax.data.prepare NAME [--data-dir DIR].

Downloads the published archives (or takes them from --archive-dir) and writes them as
TFDS array_record files. TensorFlow is not needed.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from kdjax.data import sources, tfds_files
from kdjax.runtime import command, private_names
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.files import expand


def prepare(
    name: str,
    data_dir: pathlib.Path,
    archive_dir: pathlib.Path | None = None,
) -> str:
    """Prepares a data set unless it is prepared already.

    Args:
        name: a key of `sources.SOURCES`.
        data_dir: the folder of all data sets.
        archive_dir: a folder with the published archives; None: they are downloaded.

    Returns:
        One line on the prepared data set.

    Raises:
        UserError: the name is unknown; an archive is missing, damaged or cannot be
            downloaded; or the folder cannot be written to or holds something else.
    """
    if name not in sources.SOURCES:
        raise unknown("data set", name, sources.SOURCES)
    tfds_name = sources.SOURCES[name].tfds_name
    if tfds_name is None:
        return f"{name}: comes with scikit-learn, nothing to prepare"
    if prepared := tfds_files.find(name, tfds_name, data_dir):
        return f"{name}: already prepared, {_summary(prepared)}"
    if not sources.SOURCES[name].in_memory:
        # TFDS needs TensorFlow to sort 150 GB on disk and to read these archives.
        raise UserError(
            f"{name} needs TensorFlow to be prepared, but not to be read; "
            + tfds_files.prepare_command(name, data_dir)
        )
    try:
        _build(tfds_name, data_dir, archive_dir)
    except OSError as error:
        raise UserError(f"cannot write {name} to {data_dir}: {error}") from error
    prepared = tfds_files.find(name, tfds_name, data_dir)
    assert prepared is not None
    return f"{name}: {_summary(prepared)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kdjax.data.prepare", description="Provides a data set."
    )
    parser.add_argument("name", help=f"one of {', '.join(sources.SOURCES)}")
    parser.add_argument(
        "--data-dir",
        type=pathlib.Path,
        default=tfds_files.default_data_dir(),
        help="folder of all data sets (default: %(default)s)",
    )
    parser.add_argument(
        "--archive-dir",
        type=pathlib.Path,
        help="folder with the published archives (default: download them)",
    )
    options = parser.parse_args(argv)

    def run() -> None:
        archives = options.archive_dir and expand(options.archive_dir)
        print(prepare(options.name, expand(options.data_dir), archives))

    return command.run(run, prefix="")


def _build(
    tfds_name: str, data_dir: pathlib.Path, archive_dir: pathlib.Path | None
) -> None:
    with tfds_files.quiet_tfds():
        import tensorflow_datasets as tfds

        from kdjax.data.builders import BUILDERS

        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        builder = BUILDERS[tfds_name](
            archive_dir=archive_dir, data_dir=data_dir, file_format="array_record"
        )
        if builder.data_path.exists():  # TFDS would treat it as the data set
            raise UserError(
                f"{builder.data_path} exists but holds no data set: delete it"
            )
        # In memory up to 64 GiB: on disk TFDS would sort with TensorFlow.
        with private_names.tfds_sorts_in_memory(64 << 30):
            builder.download_and_prepare()


def _summary(prepared: tfds_files.Prepared) -> str:
    images = " and ".join(f"{n} {split}" for split, n in prepared.sizes.items())
    return f"{images} images in {prepared.path}"


if __name__ == "__main__":
    sys.exit(main())
