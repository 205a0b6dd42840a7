"""What unpacks to more than memory takes is refused by what it says of itself."""

import io
import struct
import tarfile
import warnings
import zipfile
import zlib

import numpy as np
import own_images
import pytest
import scipy.io
from PIL import Image

from kdjax.data import limits, pixels
from kdjax.data.builders import cifar
from kdjax.data.own import describe
from kdjax.data.streaming.crop import Crop, evaluation
from kdjax.runtime.errors import UserError


def png(width: int, height: int) -> bytes:
    """A PNG that says to be of this size, and has no pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


LARGE = png(10_000, 10_000)
BOMB = png(50_000, 50_000)


@pytest.fixture(autouse=True)
def _as_in_production():
    """Tests make errors of warnings: PIL's is ignored there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@pytest.mark.parametrize("content", [LARGE, BOMB], ids=["large", "bomb"])
@pytest.mark.parametrize(
    "read",
    [
        lambda content: pixels.view(content, (8, 8, 3)),
        lambda content: evaluation(content, 8),
        lambda content: Crop().training(content, 8, np.full(23, 0.5)),
    ],
    ids=["view", "evaluation", "crop"],
)
def test_images_are_refused_by_their_headers(content, read):
    with pytest.raises(Exception, match=r"10000x10000 pixels; the most|exceeds limit"):
        read(content)


def test_images_of_predict_are_named(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(LARGE)
    line = r"large.png cannot be read: it is 10000x10000 pixels; the most is 89,478,485"
    with pytest.raises(UserError, match=line):
        pixels.fit([str(path)], (8, 8, 3))


def test_a_folder_goes_on_without_them(tmp_path, monkeypatch):
    folder = own_images.write(tmp_path / "photos", own_images.splits())
    settings = {"name": "folder", "path": str(folder)}
    whole = describe(settings).train_size
    (next((folder / "train").iterdir()) / "large.png").write_bytes(LARGE)
    assert describe(settings).train_size == whole
    monkeypatch.setattr(limits, "MOST_BYTES", 10)
    other = own_images.write(tmp_path / "other", own_images.splits())
    with pytest.raises(UserError, match=r"no image can be read; .* MiB; the limit"):
        describe({"name": "folder", "path": str(other)})


def test_arrays_beyond_half_of_the_memory(tmp_path, monkeypatch):
    path = tmp_path / "data.npz"
    images = np.zeros((1000, 8, 8), np.uint8)
    np.savez_compressed(path, images=images, labels=np.arange(1000) % 2)
    monkeypatch.setattr(limits, "memory", lambda: 400_000)
    assert describe({"name": "npz", "path": str(path)}).train_size
    monkeypatch.setattr(limits, "memory", lambda: 100_000)
    with pytest.raises(UserError, match=r"its arrays unpack to .* GB, more than half"):
        describe({"name": "npz", "path": str(path)})


def test_an_array_that_says_to_be_larger_than_its_file(tmp_path):
    path = tmp_path / "data.npz"
    head = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(head, shape)
    with zipfile.ZipFile(path, "w") as archive:
        for key in ("images", "labels"):
            archive.writestr(f"{key}.npy", head.getvalue())
    with pytest.raises(UserError, match=r"npz .*data.npz cannot be read: "):
        describe({"name": "npz", "path": str(path)})


def test_rows_of_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="needs kdjax[parquet]")
    import pyarrow.parquet as parquet

    path = tmp_path / "train.parquet"
    rows = {"image": [b"\0" * 10_000] * 50, "label": [0] * 50}
    parquet.write_table(pyarrow.table(rows), path, use_dictionary=False)
    assert path.stat().st_size < 50_000
    monkeypatch.setattr(limits, "memory", lambda: 900_000)
    with pytest.raises(UserError, match=r"train.parquet cannot be read: rows of group"):
        describe({"name": "parquet", "path": str(path)})


def test_members_of_archives(tmp_path, monkeypatch):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("a.bin")
        member.size = 2 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bin", bytes(2 << 20))
    mat = tmp_path / "a.mat"
    scipy.io.savemat(mat, {"X": np.zeros(2 << 20, np.uint8)}, do_compression=True)

    def read_all() -> None:
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            limits.read_member(archive, "a.bin")
        cifar._extract(path, ["a.bin"])
        limits.check_mat(mat)

    read_all()
    monkeypatch.setattr(limits, "MOST_BYTES", 1 << 20)
    line = "has [12] MiB; the limit is 1"
    with (
        pytest.raises(ValueError, match=line),
        zipfile.ZipFile(tmp_path / "a.zip") as z,
    ):
        limits.read_member(z, "a.bin")
    with pytest.raises(ValueError, match=line):
        cifar._extract(path, ["a.bin"])
    with pytest.raises(ValueError, match=line):
        limits.check_mat(mat)
