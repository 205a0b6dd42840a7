"""Crops: their numbers, ranges and pixels."""

import io

import numpy as np
import pytest
from pictures import decoded, jpeg, slope
from PIL import Image

from kdjax.data.streaming import crop
from kdjax.data.streaming.crop import Crop
from kdjax.runtime.errors import UserError

PINNED = [0.6757342234958366, 0.26666000417008073, 0.5217875128471942]


class TestDraws:
    def test_are_those_of_numpys_philox(self):
        key = np.array([2**64 - 1, 0x6B646A6178], np.uint64)
        counter = np.array([0, 1_281_166, 89, 0], np.uint64)
        theirs = np.random.Generator(np.random.Philox(key=key, counter=counter))
        ours = crop.sample_uniform(2**64 - 1, 89, 1_281_166)
        np.testing.assert_array_equal(ours, theirs.random(23))

    def test_never_change(self):
        # Pinned: published results refer to these crops.
        assert crop.sample_uniform(1, 2, 3)[:3].tolist() == PINNED

    def test_every_number_matters(self):
        keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2, 1), (0, 1, 2)]
        found = [tuple(crop.sample_uniform(*key)) for key in keys]
        assert len({value for draws in found for value in draws}) == 6 * 23


class TestBox:
    def test_lies_within_the_image_and_the_ranges(self):
        how, areas, ratios, flips = Crop(), [], [], 0
        for index in range(2000):
            uniform = crop.sample_uniform(7, 0, index)
            left, top, w, h = how.box(500, 375, uniform)
            assert 0 <= left <= 500 - w
            assert 0 <= top <= 375 - h
            areas.append(w * h / (500 * 375))
            ratios.append(w / h)
            flips += uniform[2] < 0.5
        assert 0.08 - 0.002 < min(areas) < 0.1
        assert 0.9 < max(areas) <= 1
        assert 0.74 < min(ratios) < 0.78
        assert 1.3 < max(ratios) < 1.345
        assert 900 < flips < 1100
        # In a 4:3 image a crop fits where ratio >= 4/3 * area: few of the large ones.
        area = np.linspace(0.08, 1, 10_001)
        fits = 1 - np.log(np.maximum(0.75, 4 / 3 * area) / 0.75) / np.log(16 / 9)
        assert abs(np.mean(areas) - np.average(area, weights=fits)) < 0.02

    def test_by_hand(self):
        uniform = np.zeros(23)
        uniform[:2] = 0.5, 0.999
        uniform[3:5] = 1.0, 1.0  # all of a square as 4:3 is too wide: not taken
        uniform[5:7] = 0.25, 0.5  # area 0.31, ratio 1: a side of 55.68
        assert Crop().box(100, 100, uniform) == (22, 44, 56, 56)

    @pytest.mark.parametrize(
        ("size", "box"),
        [((1000, 30), (480, 0, 40, 30)), ((30, 1000), (0, 480, 30, 40))],
    )
    def test_the_centre_where_no_attempt_fits(self, size, box):
        uniform = np.full(23, 0.9)
        assert Crop().box(*size, uniform) == box

    def test_one_pixel(self):
        assert Crop().box(1, 1, crop.sample_uniform(0, 0, 0)) == (0, 0, 1, 1)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"area": (0.5, 0.1)}, r"area=\(0.5, 0.1\) must be two positive"),
            ({"area": (0.5, 1.5)}, r"area=\(0.5, 1.5\) must not exceed"),
            ({"ratio": (0.0, 1.0)}, r"ratio=\(0.0, 1.0\) must be"),
            ({"ratio": (1.0,)}, r"ratio=\(1.0,\) must be"),
        ],
    )
    def test_impossible_settings(self, wrong, message):
        with pytest.raises(UserError, match=message):
            Crop(**wrong)


class TestTraining:
    def test_pixels_are_those_of_pil(self):
        content = jpeg(slope(90, 60))
        mirrored = set()
        for index in range(8):
            uniform = crop.sample_uniform(3, 1, index)
            left, top, w, h = Crop().box(90, 60, uniform)
            expected = decoded(content).resize(
                (32, 32),
                Image.Resampling.BILINEAR,
                box=(left, top, left + w, top + h),
            )
            flip = uniform[2] < 0.5
            mirrored.add(bool(flip))
            expected = np.asarray(expected)[:, :: -1 if flip else 1]
            np.testing.assert_array_equal(
                Crop().training(content, 32, uniform), expected
            )
            plain = Crop(flip=False).training(content, 32, uniform)
            np.testing.assert_array_equal(plain, expected[:, :: -1 if flip else 1])
        assert mirrored == {True, False}

    @pytest.mark.parametrize("size", [8, 16, 32])
    def test_reduced_decoding_keeps_the_place(self, size):
        # Odd sides: a half, a quarter and an eighth of them are no whole numbers.
        pixels, how = slope(397, 301), Crop(area=(0.4, 1.0), flip=False)
        content = jpeg(pixels)
        for index in range(10):
            uniform = crop.sample_uniform(0, 0, index)
            left, top, w, h = how.box(397, 301, uniform)
            assert min(w, h) // size >= 2  # so it is reduced
            whole = decoded(content).resize(
                (size, size),
                Image.Resampling.BILINEAR,
                box=(left, top, left + w, top + h),
            )
            seen = how.training(content, size, uniform)
            np.testing.assert_allclose(seen.astype(int), np.asarray(whole), atol=3)

    def test_without_randomness_it_is_the_evaluation(self):
        content, uniform = jpeg(slope(90, 60)), crop.sample_uniform(0, 0, 0)
        seen = Crop(random=False).training(content, 32, uniform)
        np.testing.assert_array_equal(seen, crop.evaluation(content, 32))
        assert Crop().varies
        assert not Crop(random=False).varies


class TestEvaluation:
    @pytest.mark.parametrize(
        ("size", "scaled", "corner"),
        [
            # 32 * 256 / 224 is 36.6; halves are rounded to the even number.
            ((60, 91), (37, 56), (2, 12)),
            ((91, 60), (56, 37), (12, 2)),
            ((20, 20), (37, 37), (2, 2)),
        ],
    )
    def test_pixels_are_those_of_pil(self, size, scaled, corner):
        content = jpeg(slope(*size))
        left, top = corner
        expected = decoded(content).resize(scaled, Image.Resampling.BILINEAR)
        expected = expected.crop((left, top, left + 32, top + 32))
        seen = crop.evaluation(content, 32)
        np.testing.assert_array_equal(seen, np.asarray(expected))

    def test_224_of_256(self):
        content = jpeg(slope(300, 256))
        seen = crop.evaluation(content, 224)
        expected = decoded(content).crop((38, 16, 262, 240))
        np.testing.assert_array_equal(seen, np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_become_rgb(mode):
    pixels = slope(80, 64)
    expected = np.asarray(Image.fromarray(pixels).convert(mode).convert("RGB"))
    content = jpeg(pixels, mode)
    assert Image.open(io.BytesIO(content)).mode == mode
    for seen, whole in (
        (crop.evaluation(content, 32), crop.evaluation(jpeg(expected), 32)),
        *(
            (
                Crop().training(content, 16, uniform),
                Crop().training(jpeg(expected), 16, uniform),
            )
            for uniform in [crop.sample_uniform(0, 0, index) for index in range(3)]
        ),
    ):
        assert seen.shape == whole.shape
        np.testing.assert_allclose(seen.astype(int), whole.astype(int), atol=12)
