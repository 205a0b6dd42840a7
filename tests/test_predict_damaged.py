"""Exported models that are damaged or of another form end in one line."""

import sys

import pytest

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from predicted import (
    describe,
    failure,
    write_model,
)


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "student")


class TestDamagedModels:
    """One line for each, that names the file."""

    def test_no_folder(self, folder, tmp_path, capsys):
        nowhere = tmp_path / "nowhere"
        assert failure(capsys, nowhere, "x.png") == f"no such folder: {nowhere}"
        file = folder / "model.onnx"
        assert failure(capsys, file, "x.png") == (
            f"{file} is a file; give its folder, with model.json"
        )
        assert f"there is no model.json in {tmp_path}" in failure(
            capsys, tmp_path, "x.png"
        )

    @pytest.mark.parametrize("form", ["safetensors", "torch"])
    def test_formats_that_cannot_be_run(self, folder, capsys, form):
        describe(folder, format=form, files={"float32": f"model.{form}"})
        assert failure(capsys, folder, "x.png") == (
            f"{folder} is of the format {form!r}; predict reads onnx and stablehlo"
        )

    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            ({"version": 2}, "is of version 2, and this kdjax reads up to 1; upgrade"),
            ({"version": None}, "is damaged: version=None is not an integer"),
            ({"files": None}, "is damaged: files is not a JSON object"),
            ({"files": {"float32": "../m.onnx"}}, "'../m.onnx' is not in its folder"),
            ({"files": {"float32": "gone.onnx"}}, "which model.json names, is missing"),
            ({"num_classes": 3}, "there are 4 classes, but num_classes=3"),
            ({"num_classes": 0, "classes": []}, "is damaged: num_classes=0"),
            ({"classes": [1, 2, 3, 4]}, "is damaged: classes is not a list of names"),
            ({"output": "scores"}, "has no 'scores', which model.json names, but log"),
            ({"num_classes": 5, "classes": []}, "logits is tensor(float) ['N', 4]; by"),
            ({"input": {"name": "images"}}, "is damaged: dtype=None is not text"),
            (
                {"input": {"name": "images", "dtype": "float32", "layout": "CHWN"}},
                "'CHWN'; choices: NCHW, NHWC",
            ),
            (
                {"input": {"name": "images", "dtype": "float32", "layout": "NHWC"}},
                "images is tensor(float) ['N', 3, 12, 16]; by model.json",
            ),
            (
                {"input": {"name": "images", "dtype": "uint8", "layout": "NHWC"}},
                "is damaged: inside=False with dtype='uint8'",
            ),
        ],
    )
    def test_values(self, folder, capsys, changes, line):
        describe(folder, **changes)
        assert line in failure(capsys, folder, "x.png")

    @pytest.mark.parametrize(
        ("key", "value", "line"),
        [
            ("image_shape", [12, 16], "image_shape=[12, 16]; it is height, width"),
            ("image_shape", [12, 16, 4], "image_shape=[12, 16, 4]; it is height"),
            ("fit", "squeeze", "'squeeze'; choices: cover"),
            ("mean", [0.5], "mean=[0.5]; it is 3 numbers"),
            ("std", [0.5, 0, 0.5], "std=[0.5, 0, 0.5]; it is 3 positive numbers"),
        ],
    )
    def test_preprocessing(self, folder, capsys, key, value, line):
        steps = describe(folder)["preprocessing"]
        describe(folder, preprocessing=steps | {key: value})
        assert line in failure(capsys, folder, "x.png")

    @pytest.mark.parametrize("content", [b'{"version": 1', b"\xff\xfe\x00", b"[]"])
    def test_no_json(self, folder, capsys, content):
        (folder / "model.json").write_bytes(content)
        assert "model.json is damaged: " in failure(capsys, folder, "x.png")

    @pytest.mark.parametrize("name", ["model.onnx", "model.stablehlo"])
    def test_a_damaged_network(self, folder, capsys, name):
        (folder / name).write_bytes(b"no network")
        describe(folder, format=name.split(".")[1], files={"float32": name})
        assert f"{name} cannot be opened: " in failure(capsys, folder, "x.png")

    def test_no_int8_network(self, folder, capsys):
        describe(folder)
        assert failure(capsys, folder, "x.png", "--int8") == (
            f"{folder} has no int8 network, but float32; "
            "python -m kdjax.export --int8 makes one"
        )

    def test_without_onnxruntime(self, folder, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        assert failure(capsys, folder, "x.png") == (
            f"{folder / 'model.onnx'} needs onnxruntime, which is not installed: "
            "pip install 'kdjax[export]'"
        )

    def test_without_flatbuffers(self, folder, capsys, monkeypatch):
        def deserialize(content):
            raise ImportError("Please install 'flatbuffers'")

        monkeypatch.setattr("jax.export.deserialize", deserialize)
        (folder / "model.stablehlo").touch()
        describe(folder, format="stablehlo", files={"float32": "model.stablehlo"})
        assert failure(capsys, folder, "x.png") == (
            f"{folder / 'model.stablehlo'} needs flatbuffers, which is not installed: "
            "pip install 'kdjax[export]'"
        )
