"""Published archives: downloaded or taken from a folder, read with clear errors."""

import contextlib
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import requests
import tensorflow_datasets as tfds

from kdjax.runtime import private_names
from kdjax.runtime.errors import UserError


class FromArchive:
    """Mixin for TFDS builders: an archive from the network or from a folder."""

    def __init__(
        self, *, archive_dir: pathlib.Path | None = None, **kwargs: Any
    ) -> None:
        """Makes a builder.

        Args:
            archive_dir: a folder with the archives under their published names; None:
                they are downloaded.
            **kwargs: for the TFDS builder.
        """
        self._archive_dir = archive_dir
        super().__init__(**kwargs)

    def fetch(self, manager: tfds.download.DownloadManager, url: str) -> pathlib.Path:
        """Returns the path of an archive on this machine.

        Args:
            manager: TFDS's download manager. It does not resume a download, but keeps
                complete files and checks them against checksums.tsv.
            url: where the archive is published.

        Raises:
            UserError: the archive is not in the folder, or cannot be downloaded.
        """
        file_name = url.rsplit("/", 1)[-1]
        if self._archive_dir is not None:
            path = self._archive_dir / file_name
            if not path.is_file():
                raise UserError(
                    f"no {file_name} in {self._archive_dir}; get it at {url}"
                )
            return path
        try:
            # TFDS's ten retries take more than three minutes without a network.
            with private_names.tfds_retries(3):
                return pathlib.Path(manager.download(url))
        except private_names.tfds_checksum_errors() as error:
            raise UserError(f"{url} is not the file that was published") from error
        except (requests.RequestException, tfds.download.DownloadError) as error:
            raise UserError(
                f"cannot download {url} ({type(error).__name__}); get {file_name} by "
                "other means and name its folder: --archive-dir DIR"
            ) from error


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turns the errors of reading a damaged archive into a UserError."""
    try:
        yield
    except (
        OSError,  # among them gzip.BadGzipFile
        EOFError,
        KeyError,
        ValueError,
        TypeError,  # scipy.io, on garbage
        tarfile.TarError,
        zlib.error,
        zipfile.BadZipFile,
        MemoryError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"archive {path} is damaged: {reason}") from error
