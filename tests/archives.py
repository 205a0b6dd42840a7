"""Tiny archives in the published formats, with random pixels."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

WNIDS = [f"n{7 * i:08d}" for i in reversed(range(200))]  # not in alphabetical order


def _pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _records(rng: np.random.Generator, n: int, *classes: int) -> np.ndarray:
    """Returns n records: a byte for each label, then three planes of 32x32 pixels."""
    labels = [rng.permutation(n)[:, None] % count for count in classes]
    pixels = rng.integers(0, 256, (n, 3072))
    return np.concatenate([*labels, pixels], axis=1).astype(np.uint8)


def write_cifar10(folder: Path, per_batch: int = 12, **replace: bytes | None) -> dict:
    """Writes cifar-10-binary.tar.gz and returns its records by split.

    Args:
        folder: where to.
        per_batch: records per file.
        **replace: contents to use instead, by file name without '.bin'; None: no file.
    """
    rng = np.random.default_rng(10)
    train = [_records(rng, per_batch, 10) for _ in range(5)]
    test = _records(rng, per_batch, 10)
    files = {f"data_batch_{i}": batch.tobytes() for i, batch in enumerate(train, 1)}
    files = {**files, "test_batch": test.tobytes(), **replace}
    names = "\n".join(f"class {i}" for i in range(10)) + "\n\n"
    _pack(
        folder / "cifar-10-binary.tar.gz",
        {
            f"cifar-10-batches-bin/{name}.bin": content
            for name, content in files.items()
            if content is not None
        }
        | {
            "cifar-10-batches-bin/batches.meta.txt": names.encode(),
            "cifar-10-batches-bin/readme.html": b"<html></html>",
        },
    )
    return {"train": np.concatenate(train), "test": test}


def write_cifar100(folder: Path) -> dict:
    """Writes cifar-100-binary.tar.gz and returns its records by split."""
    rng = np.random.default_rng(100)
    splits = {"train": _records(rng, 120, 20, 100), "test": _records(rng, 30, 20, 100)}
    files = {f"{split}.bin": content.tobytes() for split, content in splits.items()}
    files["coarse_label_names.txt"] = "\n".join(f"c{i}" for i in range(20)).encode()
    files["fine_label_names.txt"] = "\n".join(f"f{i}" for i in range(100)).encode()
    _pack(
        folder / "cifar-100-binary.tar.gz",
        {f"cifar-100-binary/{name}": content for name, content in files.items()},
    )
    return splits


def write_svhn(folder: Path) -> dict:
    """Writes the two .mat files; returns (images [N, 32, 32, 3], labels) by split."""
    rng = np.random.default_rng(32)
    splits = {}
    for split, n in (("train", 23), ("test", 11)):
        images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        labels = (np.arange(n) % 10 + 1).astype(np.uint8)  # 10 stands for the digit 0
        content = {"X": np.moveaxis(images, 0, -1), "y": labels[:, None]}
        scipy.io.savemat(folder / f"{split}_32x32.mat", content, do_compression=True)
        splits[split] = images, labels
    return splits


def write_tiny_imagenet(folder: Path) -> dict:
    """Writes tiny-imagenet-200.zip; returns {id: (JPEG bytes, wnid)} by split."""
    rng = np.random.default_rng(200)

    def jpeg(mode: str) -> bytes:
        shape = (64, 64, 3) if mode == "RGB" else (64, 64)
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        return buffer.getvalue()

    root = "tiny-imagenet-200"
    train = {
        f"{wnid}_{i}.JPEG": (jpeg("L" if i == 3 else "RGB"), wnid)
        for wnid in (WNIDS[0], WNIDS[7], WNIDS[199])
        for i in range(4)
    }
    validation = {
        f"val_{i}.JPEG": (jpeg("RGB"), wnid)
        for i, wnid in enumerate((WNIDS[199], WNIDS[7]))
    }
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        archive.writestr(f"{root}/", "")
        archive.writestr(f"{root}/wnids.txt", "\n".join(WNIDS) + "\n")
        archive.writestr(f"{root}/words.txt", f"{WNIDS[0]}\tgoldfish\n")
        for name, (content, wnid) in train.items():
            archive.writestr(f"{root}/train/{wnid}/images/{name}", content)
        for wnid in WNIDS[:3]:
            archive.writestr(f"{root}/train/{wnid}/{wnid}_boxes.txt", "")
        archive.writestr(f"{root}/test/images/test_0.JPEG", jpeg("RGB"))
        lines = [f"{k}\t{wnid}\t0\t32\t44\t62\n" for k, (_, wnid) in validation.items()]
        archive.writestr(f"{root}/val/val_annotations.txt", "".join(lines))
        for name, (content, _) in validation.items():
            archive.writestr(f"{root}/val/images/{name}", content)
    return {"train": train, "validation": validation}
