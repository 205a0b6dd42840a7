"""Exported models classify files: exactly evaluation's pixels, in order, by name."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from own_images import encoded, pixels
from PIL import Image

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import onnx
from onnx import TensorProto, helper, numpy_helper

from kdjax.data import pixels as own_pixels
from kdjax.data.stream import normalise
from kdjax.predict import ClassScore, Model, runtimes
from kdjax.predict.__main__ import main
from kdjax.predict.files import find
from kdjax.runtime.errors import UserError

ROOT = Path(__file__).parents[1]
CLASSES = ["ant", "bee", "cow", "dög"]
SHAPE = (12, 16, 3)
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.3, 0.2]
RNG = np.random.default_rng(7)
KERNEL = RNG.normal(size=(3, 4)).astype(np.float32)
BIAS = RNG.normal(size=4).astype(np.float32)


def network(dtype="float32", sign=1.0):
    """Means of the channels, then a linear layer: 'images' to 'logits'."""
    float32, height, width = TensorProto.FLOAT, *SHAPE[:2]
    nodes, arrays = [], {"kernel": sign * KERNEL, "bias": sign * BIAS}
    first, shape = "images", ["N", 3, height, width]
    if dtype == "uint8":
        shape = ["N", height, width, 3]
        arrays |= {"scale": np.float32(255 * np.float32(STD))}
        arrays |= {"shift": np.float32(255 * np.float32(MEAN))}
        nodes = [
            helper.make_node("Cast", ["images"], ["real"], to=float32),
            helper.make_node("Sub", ["real", "shift"], ["middle"]),
            helper.make_node("Div", ["middle", "scale"], ["unit"]),
            helper.make_node("Transpose", ["unit"], ["nchw"], perm=[0, 3, 1, 2]),
        ]
        first = "nchw"
    nodes += [
        helper.make_node("GlobalAveragePool", [first], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "kernel", "bias"], ["logits"]),
    ]
    kind = TensorProto.UINT8 if dtype == "uint8" else float32
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info("logits", float32, ["N", 4])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def describe(folder, **changes):
    """Writes a model.json by the contract; a change of None leaves a key out."""
    content = {
        "version": 1,
        "format": "onnx",
        "files": {"float32": "model.onnx"},
        "model": "linear",
        "num_classes": 4,
        "classes": CLASSES,
        "input": {"name": "images", "dtype": "float32", "layout": "NCHW"},
        "output": "logits",
        "preprocessing": {
            "image_shape": SHAPE,
            "fit": "cover",
            "mean": MEAN,
            "std": STD,
            "inside": False,
        },
    } | changes
    content = {key: value for key, value in content.items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(json.dumps(content))
    return content


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "student"
    files = {"float32": "model.onnx", "int8": "model.int8.onnx"}
    describe(folder, files=files)
    onnx.save(network(), folder / "model.onnx")
    onnx.save(network(sign=-1.0), folder / "model.int8.onnx")
    return folder


@pytest.fixture
def photos(tmp_path, rng):
    """Images of several kinds and sizes, in folders, with what is none of them."""
    root = tmp_path / "photos"
    for name, form, array in (
        ("b.PNG", "PNG", pixels(rng, 12, 16)),
        ("a/large.jpg", "JPEG", pixels(rng, 60, 50)),
        ("a/grey.png", "PNG", pixels(rng, 30, 40, channels=1)),
        ("c/d/deep.webp", "WEBP", pixels(rng, 24, 20)),
        (".hidden/e.png", "PNG", pixels(rng)),
        ("a/.f.png", "PNG", pixels(rng)),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(array, form))
    (root / "a" / "notes.txt").write_text("no image")
    return root


ORDER = ["a/grey.png", "a/large.jpg", "b.PNG", "c/d/deep.webp"]


def oracle(images, sign=1.0):
    """The network in float64, of uint8 `[N, H, W, C]`."""
    unit = (np.float64(images) / 255 - MEAN) / STD
    return sign * (unit.mean((1, 2)) @ np.float64(KERNEL) + BIAS)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def views(paths):
    return np.stack([own_pixels.view(path, SHAPE) for path in paths])


def lines(capsys, code, *argv):
    assert main([str(word) for word in argv]) == code
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


def failure(capsys, *argv):
    out, err = lines(capsys, 2, *argv)
    assert out == []
    assert len(err) == 1, err
    assert err[0].startswith("kdjax: ")
    return err[0].removeprefix("kdjax: ")


class TestModel:
    def test_logits_are_those_of_the_pixels_that_evaluation_sees(self, folder, photos):
        paths = [photos / name for name in ORDER]
        found = Model(folder).logits(paths)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, oracle(views(paths)), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("threads", "batch_size"), [(1, 1), (3, 2), (2, 100)])
    def test_order_and_rows_do_not_depend_on_threads_and_batches(
        self, folder, rng, threads, batch_size
    ):
        images = rng.integers(0, 256, (37, *SHAPE), dtype=np.uint8)
        model = Model(folder, threads=threads, batch_size=batch_size)
        np.testing.assert_allclose(
            model.logits(images), oracle(images), rtol=1e-5, atol=1e-5
        )

    def test_arrays_paths_and_pil_images_mix(self, folder, photos, rng):
        array = pixels(rng, 40, 33)
        images = [array, photos / "b.PNG", Image.fromarray(array[..., 0])]
        rows = own_pixels.fit(images, SHAPE)
        found = Model(folder).logits(images)
        np.testing.assert_allclose(found, oracle(rows), rtol=1e-5, atol=1e-5)
        one = Model(folder).logits(str(photos / "b.PNG"))
        np.testing.assert_array_equal(one, found[1:2])
        assert Model(folder).logits([]).shape == (0, 4)

    def test_predict_gives_the_softmax_of_the_best(self, folder, rng):
        images = rng.integers(0, 256, (5, *SHAPE), dtype=np.uint8)
        shares = softmax(oracle(images))
        for best, row in zip(Model(folder).predict(images, 3), shares, strict=True):
            order = np.argsort(-row)[:3]
            assert [one.index for one in best] == order.tolist()
            assert [one.name for one in best] == [CLASSES[i] for i in order]
            np.testing.assert_allclose(
                [one.probability for one in best], row[order], rtol=1e-5
            )
        (whole,) = Model(folder).predict(images[:1], 99)
        assert len(whole) == 4
        assert sum(one.probability for one in whole) == pytest.approx(1)

    def test_huge_logits_are_finite(self, folder):
        best = Model(folder).best(np.float32([-3e38, 3e38, 0, 3e38]), 2)
        assert best == [ClassScore("bee", 1, 0.5), ClassScore(CLASSES[3], 3, 0.5)]

    def test_int8_is_the_other_file(self, folder, rng):
        images = rng.integers(0, 256, (2, *SHAPE), dtype=np.uint8)
        np.testing.assert_allclose(
            Model(folder, int8=True).logits(images), oracle(images, -1.0), rtol=1e-5
        )

    def test_normalisation_may_be_inside(self, folder, rng):
        content = describe(
            folder, input={"name": "images", "dtype": "uint8", "layout": "NHWC"}
        )
        describe(
            folder,
            input=content["input"],
            preprocessing=content["preprocessing"] | {"inside": True},
        )
        onnx.save(network("uint8"), folder / "model.onnx")
        images = rng.integers(0, 256, (3, *SHAPE), dtype=np.uint8)
        np.testing.assert_allclose(
            Model(folder).logits(images), oracle(images), rtol=1e-4, atol=1e-5
        )

    def test_stablehlo(self, folder, rng):
        def apply(images):
            return images.mean((1, 2)) @ KERNEL + BIAS[np.newaxis]

        # Any number of images, as the export writes it.
        (n,) = jax.export.symbolic_shape("N")
        spec = jax.ShapeDtypeStruct((n, *SHAPE), np.float32)
        exported = jax.export.export(jax.jit(apply), platforms=["cpu"])(spec)
        (folder / "model.stablehlo").write_bytes(exported.serialize())
        describe(
            folder,
            format="stablehlo",
            files={"float32": "model.stablehlo"},
            input={"name": "images", "dtype": "float32", "layout": "NHWC"},
        )
        images = rng.integers(0, 256, (11, *SHAPE), dtype=np.uint8)
        model = Model(folder, batch_size=4)
        call = runtimes.open_network(model.description, 4)
        assert call(images[:3]).shape == (3, 4)
        np.testing.assert_allclose(
            model.logits(images), oracle(images), rtol=1e-5, atol=1e-5
        )

    def test_normalised_pixels_are_those_of_evaluation(self, folder, rng):
        images = rng.integers(0, 256, (2, *SHAPE), dtype=np.uint8)
        found = runtimes.prepare(images, Model(folder).description)
        expected = normalise(images, tuple(MEAN), tuple(STD), np.dtype("float32"))
        expected = np.transpose(expected, (0, 3, 1, 2))
        # XLA divides by 255 as it multiplies by the inverse.
        np.testing.assert_allclose(found, expected, rtol=3e-7, atol=3e-7)

    def test_few_images_are_held_at_a_time(self, folder):
        taken = 0

        def images():
            nonlocal taken
            for _ in range(1000):
                taken += 1
                yield np.zeros(SHAPE, np.uint8)

        model = Model(folder, threads=2, batch_size=4)
        ahead = [taken - done for done, _ in enumerate(model.stream(images()))]
        assert len(ahead) == 1000
        assert max(ahead) <= 2 * 2 * 4

    def test_a_stream_that_is_left_early_ends_its_work(self, folder, monkeypatch):
        model = Model(folder, threads=2, batch_size=1)
        calls = []

        def slow(images):
            calls.append(time.sleep(0.02))
            return np.zeros((len(images), 4), np.float32)

        monkeypatch.setattr(model, "_network", slow)
        before = threading.active_count()
        stream = model.stream([np.zeros(SHAPE, np.uint8)] * 100)
        next(stream)
        stream.close()
        count = len(calls)
        assert count <= 4
        assert threading.active_count() == before
        time.sleep(0.06)
        assert len(calls) == count

    @pytest.mark.parametrize(
        ("images", "line"),
        [
            (np.zeros((2, *SHAPE)), "images are float64 pixels"),
            (
                [np.zeros(SHAPE, np.uint8), np.zeros((3, 3), np.uint8)],
                "image 1 are 3x3",
            ),
            (["nowhere.png"], "nowhere.png cannot be read: "),
        ],
    )
    def test_wrong_images(self, folder, images, line):
        with pytest.raises(UserError, match=re.escape(line)):
            Model(folder).logits(images)

    def test_wrong_numbers(self, folder):
        for name in ("threads", "batch_size"):
            with pytest.raises(UserError, match=f"{name}=0; it is 1 or more"):
                Model(folder, **{name: 0})
        with pytest.raises(UserError, match="top=0; it is 1 or more"):
            Model(folder).predict([np.zeros(SHAPE, np.uint8)], top=0)


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
            "         'tensorflow_datasets'}\n"
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

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            ([], "the following arguments are required: image; see --help"),
            (["x.png", "--top=0"], "--top=0; it is 1 or more; see --help"),
            (["x.png", "--threads=-1"], "--threads=-1; it is 1 or more; see --help"),
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
            ({"version": None}, "is damaged: version=None is no whole number"),
            ({"files": None}, "is damaged: files is no JSON object"),
            ({"files": {"float32": "../m.onnx"}}, "'../m.onnx' is not in its folder"),
            ({"files": {"float32": "gone.onnx"}}, "which model.json names, is missing"),
            ({"num_classes": 3}, "there are 4 classes, but num_classes=3"),
            ({"num_classes": 0, "classes": []}, "is damaged: num_classes=0"),
            ({"classes": [1, 2, 3, 4]}, "is damaged: classes is no list of names"),
            ({"output": "scores"}, "has no 'scores', which model.json names, but log"),
            ({"num_classes": 5, "classes": []}, "logits is tensor(float) ['N', 4]; by"),
            ({"input": {"name": "images"}}, "is damaged: dtype=None is no text"),
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


def test_the_benchmark_compares_equal_work(tmp_path):
    from benchmarks import plain_loop, predict

    folder = predict.write_model(tmp_path / "model", 32)
    paths = predict.write_images(tmp_path / "png", 5, (32, 32), "png")
    ours = Model(folder).predict(paths)
    for best, plain in zip(ours, plain_loop.plain(folder)(paths), strict=True):
        assert [one.index for one in best] == [index for index, _ in plain]
        np.testing.assert_allclose(
            [one.probability for one in best], [share for _, share in plain], rtol=1e-4
        )
