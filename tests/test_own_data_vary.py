"""Augmentation of one's own images, on the device and on the host."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_images import encoded, pixels
from PIL import Image, ImageEnhance

from kdjax.data.augment import Augment
from kdjax.data.own.host_vary import HostVary
from kdjax.data.own.vary import Vary, _stretch
from kdjax.data.pixels import view
from kdjax.data.stream import Stream
from kdjax.data.streaming.crop import Crop, sample_uniform
from kdjax.runtime.errors import UserError
from kdjax.runtime.rng import fold

KEYS = jax.random.split(jax.random.key(3), 6)


@pytest.fixture
def images(rng):
    return np.stack([pixels(rng, 20, 24) for _ in range(6)])


def test_what_augment_does_is_done_by_it(images):
    options = {"crop": 2, "padding": "zero", "flip": True, "rotate": 10.0}
    np.testing.assert_array_equal(
        Vary(**options).apply(images, KEYS), Augment(**options).apply(images, KEYS)
    )
    off = Vary(area=(1.0, 1.0), jitter=(0.0, 0.0, 0.0))
    assert not off.varies
    assert off.on_host() == HostVary(jitter=(0.0, 0.0, 0.0))
    np.testing.assert_array_equal(off.apply(images, KEYS), images)


def test_plain_options_cost_what_they_cost_for_published_data_sets():
    """The same program: images of one's own train as fast as CIFAR's."""
    images = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.uint8)

    def program(augment):
        stream = Stream(100, 4, augment, (0.5,) * 3, (0.25,) * 3)
        labels = jax.ShapeDtypeStruct((4,), jnp.int32)
        index = jax.ShapeDtypeStruct((2,), jnp.int32)
        examples = jax.jit(lambda data, i, key: stream.examples(data, i, key))
        return examples.lower((images, labels), index, jax.random.key(0)).as_text()

    assert program(Vary(crop=2, flip=True)) == program(Augment(crop=2, flip=True))


def test_what_varies():
    for options in ({"area": (0.5, 1.0)}, {"jitter": (0.0, 0.0, 0.1)}, {"flip": True}):
        assert Vary(**options).varies


@pytest.mark.parametrize(
    ("vary", "changes"),
    [(Vary(area=(0.2, 0.8)), True), (Vary(jitter=(0.4, 0.4, 0.4)), True)],
)
def test_an_image_depends_on_its_own_key_alone(images, vary, changes):
    apply = jax.jit(vary.apply)
    whole = apply(images, KEYS)
    assert whole.shape == images.shape
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 255
    turned = apply(images[::-1], KEYS[::-1])
    np.testing.assert_allclose(turned[::-1], whole, atol=1e-3)
    other = apply(images, jax.random.split(jax.random.key(4), 6))
    assert (np.abs(np.asarray(other) - whole).max((1, 2, 3)) > 1).all() == changes


def test_a_part_is_scaled_as_pil_scales_it(images):
    array = images[0]
    for top, h, left, w in ((0, 20, 0, 24), (3, 9, 5, 16), (11, 9, 0, 5)):
        ours = _stretch(jnp.asarray(array, jnp.float32), top, h)
        ours = _stretch(ours.swapaxes(0, 1), left, w).swapaxes(0, 1)
        pil = Image.fromarray(array).resize(
            (24, 20), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h)
        )
        np.testing.assert_allclose(ours, np.asarray(pil, np.float32), atol=1.01)


def test_parts_have_the_areas_and_ratios_that_are_asked_for():
    """Ramps of rows and columns say which part was cut out."""
    size, count = 64, 600
    ramp = np.arange(size, dtype=np.float32) * 3
    image = np.stack(np.meshgrid(ramp, ramp, indexing="ij"), axis=-1)[None]
    keys = jax.random.split(jax.random.key(0), count)
    vary = Vary(area=(0.25, 0.5), ratio=(0.5, 2.0))
    cut = np.asarray(jax.jit(vary.apply)(np.repeat(image, count, 0), keys)) / 3
    # In the middle, neighbours differ by the part's length over the image's.
    high = (cut[:, 40, 32, 0] - cut[:, 24, 32, 0]) / 16 * size
    wide = (cut[:, 32, 40, 1] - cut[:, 32, 24, 1]) / 16 * size
    area, ratio = high * wide / size**2, wide / high
    # Sides are whole pixels.
    assert 0.24 < area.min() < 0.26 < 0.49 < area.max() < 0.51
    assert 0.48 < ratio.min() < 0.53 < 1.9 < ratio.max() < 2.1
    np.testing.assert_allclose(area.mean(), 0.375, atol=4 * 0.25 / 12**0.5 / count**0.5)
    np.testing.assert_allclose(np.log(ratio).mean(), 0, atol=4 * 0.4 / count**0.5)
    middle = cut[:, 32, 32, 0] + (cut[:, 33, 32, 0] - cut[:, 32, 32, 0]) / -2
    # A whole number of rows is above the part, from none to as many as there are.
    top = middle + 0.5 - high / 2
    np.testing.assert_allclose(top, top.round(), atol=0.02)
    assert (top >= -0.02).all()
    assert (top + high <= size + 0.02).all()
    assert top.round().min() == 0
    assert (top + high)[high < size - 4].round().max() == size


def test_a_part_that_never_fits_is_the_largest_in_the_middle(images):
    array = images[:1]
    wide = Vary(area=(0.9, 1.0), ratio=(2.0, 2.0))
    cut = jax.jit(wide.apply)(array, KEYS[:1])[0]
    pil = Image.fromarray(array[0]).resize(
        (24, 20), Image.Resampling.BILINEAR, box=(0, 4, 24, 16)
    )
    np.testing.assert_allclose(cut, np.asarray(pil, np.float32), atol=1.01)


@pytest.mark.parametrize("which", range(3))
def test_colours_change_as_pil_changes_them(images, which):
    kinds = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    strength = tuple(0.6 * (i == which) for i in range(3))
    ours = np.asarray(Vary(jitter=strength).apply(images, KEYS))
    factors = []
    for image, key, varied in zip(images, KEYS, ours, strict=True):
        uniform = jax.random.uniform(fold(key, "jitter"), (3,), minval=-1.0)
        factor = 1 + 0.6 * float(uniform[which])
        pil = kinds[which](Image.fromarray(image)).enhance(factor)
        np.testing.assert_allclose(varied, np.asarray(pil, np.float32), atol=1.6)
        factors.append(factor)
    assert min(factors) < 0.9
    assert max(factors) > 1.1


def test_grey_images_have_no_saturation(images):
    grey = images[..., :1]
    same = Vary(jitter=(0.0, 0.0, 1.0)).apply(grey, KEYS)
    np.testing.assert_allclose(same, grey, atol=1e-3)
    assert Vary(jitter=(0.5, 0.5, 0.5)).apply(grey, KEYS).shape == grey.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": (0.5,)}, r"area=\(0.5,\) must be two positive numbers"),
        ({"area": (0.5, 1.5)}, "of at most 1"),
        ({"area": (0.9, 0.5)}, "the smaller one first"),
        ({"ratio": ()}, r"ratio=\(\) must be two"),
        ({"jitter": (0.1, 0.1)}, "three strengths from 0 to 1"),
        ({"jitter": (0.1, 0.1, 1.1)}, "three strengths from 0 to 1"),
        ({"padding": "edge"}, "'edge'; choices: reflect, zero"),
        ({"rotate": 200.0}, r"rotate=200\.0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        Vary(**options)


class TestOnTheHost:
    def test_without_options_it_is_evaluation(self, rng):
        content = encoded(pixels(rng, 40, 50))
        uniform = sample_uniform(1, 2, 3, HostVary.DRAWS)
        np.testing.assert_array_equal(
            HostVary().training(content, 24, uniform), view(content, (24, 24, 3))
        )

    def test_random_parts_are_those_of_crop(self, rng):
        content = encoded(pixels(rng, 90, 120), "JPEG")
        host = Vary(area=(0.08, 1.0), flip=True).on_host()
        for index in range(8):
            uniform = sample_uniform(1, 2, index, HostVary.DRAWS)
            np.testing.assert_array_equal(
                host.training(content, 24, uniform),
                Crop().training(content, 24, sample_uniform(1, 2, index)),
            )

    def test_further_numbers_do_not_change_the_first(self):
        few, many = sample_uniform(1, 2, 3), sample_uniform(1, 2, 3, HostVary.DRAWS)
        np.testing.assert_array_equal(many[: len(few)], few)
        assert len(many) == HostVary.DRAWS == len(few) + 6

    @pytest.mark.parametrize("padding", ["reflect", "zero"])
    def test_shifts(self, rng, padding):
        array = pixels(rng, 16, 16)
        host, found = HostVary(crop=3, padding=padding), set()
        mode = {"reflect": "symmetric", "zero": "constant"}[padding]
        padded = np.pad(array, ((3, 3), (3, 3), (0, 0)), mode)
        for index in range(60):
            uniform = sample_uniform(1, 2, index, HostVary.DRAWS)
            seen = host.training(encoded(array), 16, uniform)
            places = [
                (top, left)
                for top in range(7)
                for left in range(7)
                if (padded[top : top + 16, left : left + 16] == seen).all()
            ]
            assert len(places) == 1
            found.add(places[0])
        assert {top for top, _ in found} == {left for _, left in found} == set(range(7))

    def test_turns_by_the_drawn_angle(self, rng):
        array = pixels(rng, 17, 17)
        uniform = np.full(HostVary.DRAWS, 0.5)
        uniform[Crop.DRAWS + 2] = 1.0
        seen = HostVary(rotate=90.0).training(encoded(array), 17, uniform)
        np.testing.assert_array_equal(seen, np.rot90(array))
        uniform[Crop.DRAWS + 2] = 0.5
        same = HostVary(rotate=90.0).training(encoded(array), 17, uniform)
        np.testing.assert_array_equal(same, array)

    def test_colours(self, rng):
        array = pixels(rng)
        uniform = np.full(HostVary.DRAWS, 0.5)
        uniform[-3:] = 1.0, 0.25, 0.75
        seen = HostVary(jitter=(0.2, 0.4, 0.6)).training(encoded(array), 20, uniform)
        image = ImageEnhance.Brightness(Image.fromarray(array)).enhance(1.2)
        image = ImageEnhance.Contrast(image).enhance(0.8)
        image = ImageEnhance.Color(image).enhance(1.3)
        np.testing.assert_array_equal(seen, np.asarray(image))

    def test_grey_and_turned_files(self, rng):
        exif, buffer = Image.Exif(), io.BytesIO()
        exif[0x0112] = 6
        array = pixels(rng, 30, 40)
        Image.fromarray(array).save(buffer, "PNG", exif=exif)
        upright = np.rot90(array, -1)
        uniform = sample_uniform(1, 2, 3, HostVary.DRAWS)
        for channels in (1, 3):
            host = HostVary(area=(0.2, 1.0), channels=channels)
            seen = host.training(buffer.getvalue(), 16, uniform)
            assert seen.shape == (16, 16, channels)
            again = host.training(encoded(upright), 16, uniform)
            np.testing.assert_array_equal(seen, again)
