"""Exported models classify files: exactly evaluation's pixels, in order, by name."""

import re
import threading
import time

import jax
import jax.export
import numpy as np
import pytest
from own_images import pixels
from PIL import Image

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import onnx
from predicted import (
    BIAS,
    CLASSES,
    KERNEL,
    MEAN,
    ORDER,
    SHAPE,
    STD,
    describe,
    network,
    oracle,
    softmax,
    views,
    write_model,
    write_photos,
)

from kdjax.data import pixels as own_pixels
from kdjax.data.stream import normalise
from kdjax.predict import ClassScore, Model, runtimes
from kdjax.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "student")


@pytest.fixture
def photos(tmp_path, rng):
    return write_photos(tmp_path / "photos", rng)


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
            with pytest.raises(UserError, match=f"{name}=0 must be 1 or more"):
                Model(folder, **{name: 0})
        with pytest.raises(UserError, match="top=0 must be 1 or more"):
            Model(folder).predict([np.zeros(SHAPE, np.uint8)], top=0)


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
