"""The Python interface with a folder of images."""

import numpy as np
import pytest
import tiny  # noqa: F401 (its networks)
from api_parts import Net
from PIL import Image

import kdjax


def write_folder(folder, count=12):
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("test", count // 2)):
        for shade, name in enumerate(("dark", "light")):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 100, (16, 20, 3)) + 150 * shade
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")


def test_a_folder_and_its_classes(tmp_path):
    write_folder(tmp_path / "photos")
    result = kdjax.distill(
        student=Net(num_classes=2, width=4),
        data=tmp_path / "photos",
        method="supervised",
        workdir=tmp_path / "run",
        epochs=15,
        batch_size=8,
        recipe={"learning_rate": 0.01},
    )
    assert result.student.classes == ("dark", "light")
    assert result.summary["classes"] == ["dark", "light"]
    assert result.accuracy == 1.0
    path = tmp_path / "photos" / "test" / "light" / "3.png"
    (row,) = result.predict([path])
    assert result.student.classes[row.argmax()] == "light"
    assert result.evaluate([path], ["light"])["accuracy"] == 1.0
    with pytest.raises(kdjax.UserError, match="unknown class 'grey'; choices: dark"):
        result.evaluate([path], ["grey"])
