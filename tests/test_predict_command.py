"""The command that classifies files, and how it finds them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from own_images import encoded
from PIL import Image

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from predicted import (
    CLASSES,
    ORDER,
    ROOT,
    describe,
    failure,
    lines,
    oracle,
    softmax,
    views,
    write_model,
    write_photos,
)

from kdjax.predict.files import find


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "student")


@pytest.fixture
def photos(tmp_path, rng):
    return write_photos(tmp_path / "photos", rng)


class TestCommand:
    def test_files_and_folders_in_the_order_of_the_arguments(
        self, folder, photos, capsys
    ):
        last = photos / "b.PNG"
        out, err = lines(capsys, 0, folder, last, photos, "--top", 2, "--threads", 2)
        assert err == []
        paths = [last, *(photos / name for name in ORDER)]
        for line, path, row in zip(
            out, paths, softmax(oracle(views(paths))), strict=True
        ):
            first, second = np.argsort(-row)[:2]
            assert line == (
                f"{path}: {CLASSES[first]} {row[first]:.2%}, "
                f"{CLASSES[second]} {row[second]:.2%}"
            )

    def test_json_and_five_classes(self, folder, photos, capsys):
        describe(folder, classes=[])  # without names: their numbers
        out, _ = lines(capsys, 0, folder, photos, "--json", "--batch-size", 3)
        for line, name in zip(out, ORDER, strict=True):
            found = json.loads(line)
            row = softmax(oracle(views([photos / name])))[0]
            assert found["image"] == str(photos / name)
            assert [one["index"] for one in found["classes"]] == [*np.argsort(-row)]
            for one in found["classes"]:
                assert one["name"] == str(one["index"])
                assert one["probability"] == pytest.approx(row[one["index"]], rel=1e-4)

    def test_a_broken_image_is_named_and_the_others_go_on(self, folder, photos, capsys):
        whole, _ = lines(capsys, 0, folder, photos)
        content = (photos / "a/large.jpg").read_bytes()
        (photos / "a/cut.jpg").write_bytes(content[: len(content) // 2])
        (photos / "a/text.png").write_text("no image")
        (photos / "bad.png").write_bytes(encoded(np.zeros((5, 40), np.uint8)))
        (photos / "empty").mkdir()
        there = ["a/cut.jpg", "a/text.png", "bad.png", "nowhere.gif", "empty"]
        out, err = lines(
            capsys, 0, folder, photos, photos / there[3], photos / there[4]
        )
        assert out == whole
        assert len(err) == len(there)
        for name in there:
            (line,) = (line for line in err if str(photos / name) in line)
            assert line.startswith("kdjax: ")
        assert "bad.png cannot be read: it is 40x5 pixels; the least is 8x8" in str(err)
        assert "nowhere.gif cannot be read: No such file or directory" in str(err)
        assert f"there are no images in {photos / 'empty'}" in str(err)

    def test_what_pil_warns_of_is_read(self, folder, photos, capsys, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2500)
        with pytest.warns(Image.DecompressionBombWarning):
            Image.open(photos / "a/large.jpg").close()
        out, err = lines(capsys, 0, folder, photos)
        assert (len(out), err) == (len(ORDER), [])

    def test_nothing_readable(self, folder, tmp_path, capsys):
        out, err = lines(capsys, 2, folder, tmp_path / "x.png")
        assert out == []
        assert err == [
            f"kdjax: {tmp_path / 'x.png'} cannot be read: No such file or directory",
            "kdjax: no image could be read",
        ]

    def test_an_onnx_model_needs_no_jax(self, folder, photos):
        code = (
            "import sys\n"
            "from kdjax.predict.__main__ import main\n"
            "code = main(sys.argv[1:])\n"
            "heavy = {'jax', 'flax', 'orbax', 'optax', 'grain', 'absl', 'rich',\n"
            "         'onnx', 'scipy', 'sklearn', 'matplotlib',\n"
            "         'tensorflow_datasets', 'socket', 'zipfile'}\n"
            "print(sorted(heavy & sys.modules.keys()), code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, folder, photos],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stderr == ""
        *classes, last = done.stdout.splitlines()
        assert len(classes) == len(ORDER)
        assert last == "[] 0"

    def test_a_reader_that_leaves_early(self, folder, photos):
        program = [sys.executable, "-m", "kdjax.predict", folder, *([photos] * 3000)]
        with subprocess.Popen(
            program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert b"%" in process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(timeout=60) == 141

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
    def test_output_on_a_full_disk(self, folder, photos):
        program = [sys.executable, "-m", "kdjax.predict", folder, photos]
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                program, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=60
            )
        assert done.returncode == 2
        assert done.stderr.decode() == (
            "kdjax: the output cannot be written: No space left on device\n"
        )

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            ([], "the following arguments are required: image; see --help"),
            (["x.png", "--top=0"], "--top=0 must be 1 or more; see --help"),
            (["x.png", "--threads=-1"], "--threads=-1 must be 1 or more; see --help"),
            (["x.png", "--batch-size=a"], "invalid int value: 'a'; see --help"),
        ],
    )
    def test_wrong_arguments(self, folder, capsys, arguments, line):
        assert failure(capsys, folder, *arguments).endswith(line)


class TestFind:
    def test_links_that_lead_back_end(self, photos):
        os.symlink(photos, photos / "a" / "back")
        os.symlink(photos / "c", photos / "z")
        found = list(find([str(photos)], pytest.fail))
        assert found == [str(photos / name) for name in [*ORDER, "z/d/deep.webp"]]

    def test_a_given_file_needs_no_ending(self, tmp_path):
        (tmp_path / "x.dat").touch()
        assert list(find([str(tmp_path / "x.dat")], pytest.fail)) == [
            str(tmp_path / "x.dat")
        ]
