"""Augmentation and the stream: images by key alone, in batches of any layout."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import ndimage

from kdjax.data import augment, device_feed
from kdjax.data.augment import Augment
from kdjax.data.stream import Stream, normalise
from kdjax.runtime import parallel
from kdjax.runtime.errors import UserError
from kdjax.runtime.rng import fold

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def pictures(count, height=6, width=5):
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def vary(how, image, count):
    """One image under many keys."""
    return np.asarray(jax.jit(how.apply)(np.stack([image] * count), keys(count)))


def candidates(image, crop, mode, flip):
    """All crops of the padded image, each as it is and mirrored."""
    height, width, _ = image.shape
    border = (crop, crop)
    padded = np.pad(image, (border, border, (0, 0)), mode=mode)
    offsets = itertools.product(range(2 * crop + 1), repeat=2)
    crops = [padded[i : i + height, j : j + width] for i, j in offsets]
    return crops + [crop[:, ::-1] for crop in crops] if flip else crops


def assert_uniform(counts):
    """Bounds chi-square by its mean and four of its standard deviations."""
    counts = np.asarray(counts)
    free, expected = len(counts) - 1, counts.mean()
    assert expected >= 50
    chi_square = np.sum((counts - expected) ** 2) / expected
    assert chi_square < free + 4 * np.sqrt(2 * free)


@pytest.mark.parametrize(
    ("padding", "mode"), [("reflect", "symmetric"), ("zero", "constant")]
)
@pytest.mark.parametrize(("crop", "flip"), [(2, True), (2, False), (0, True)])
def test_every_crop_and_mirroring_is_equally_frequent(crop, flip, padding, mode):
    image = pictures(1)[0]
    expected = [
        candidate.tobytes() for candidate in candidates(image, crop, mode, flip)
    ]
    assert len(set(expected)) == (2 * crop + 1) ** 2 * (1 + flip)

    varied = vary(Augment(crop, padding, flip), image, 100 * len(expected))

    assert varied.dtype == np.uint8
    found = [candidate.tobytes() for candidate in varied]
    assert set(found) <= set(expected)
    assert_uniform([found.count(candidate) for candidate in expected])


def test_a_crop_as_large_as_the_image_reflects_it_whole():
    image = pictures(1, 3, 3)[0]
    expected = {c.tobytes() for c in candidates(image, 3, "symmetric", False)}

    varied = vary(Augment(crop=3), image, 400)

    assert {candidate.tobytes() for candidate in varied} == expected


def test_no_augmentation_changes_nothing():
    images = pictures(7)

    np.testing.assert_array_equal(Augment().apply(images, keys(7)), images)


def test_no_turn_changes_nothing_and_a_quarter_turn_is_exact():
    image = pictures(1, 7, 7)[0]

    np.testing.assert_array_equal(augment._rotate(image, 0.0), image)
    turned = augment._rotate(image, jnp.pi / 2)
    # In float32, a quarter turn ends a little beside the pixels.
    np.testing.assert_allclose(turned, np.rot90(image, -1), atol=2e-3)


@pytest.mark.parametrize("degrees", [17.0, -60.0])
def test_turns_are_scipys(degrees):
    image = pictures(1, 8, 6)[0]

    turned = augment._rotate(image, np.deg2rad(degrees))

    expected = ndimage.rotate(
        image.astype(float), -degrees, reshape=False, order=1, mode="reflect"
    )
    np.testing.assert_allclose(turned, expected, atol=2e-3)


@pytest.mark.parametrize("largest", [15.0, 180.0])
def test_angles_are_uniform_within_the_largest(largest):
    # A ramp is interpolated exactly: next to the centre it tells sine and cosine.
    rows, columns = np.mgrid[:5, :5].astype(np.uint8)
    image = np.stack([rows, columns], axis=-1)

    turned = vary(Augment(rotate=largest), image, 2000)

    assert turned.dtype == np.float32
    sine, cosine = (turned[:, 2, 3] - turned[:, 2, 2]).T
    np.testing.assert_allclose(sine**2 + cosine**2, 1, atol=1e-5)
    angles = np.rad2deg(np.arctan2(sine, cosine))
    assert np.abs(angles).max() <= largest + 1e-3
    assert_uniform(np.histogram(angles, 20, (-largest, largest))[0])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"padding": "wrap"}, "'wrap'; choices: reflect, zero"),
        ({"crop": -1}, "crop=-1"),
        ({"rotate": -5.0}, "rotate=-5.0"),
        ({"rotate": 181.0}, "rotate=181.0"),
        ({"rotate": float("nan")}, "rotate=nan"),
    ],
)
def test_impossible_augmentation_is_told(settings, named):
    with pytest.raises(UserError, match=named):
        Augment(**settings)


def test_a_crop_larger_than_the_image_is_told():
    with pytest.raises(UserError, match=r"crop=6 .* \(6, 5\)"):
        Augment(crop=6).apply(pictures(2), keys(2))


def test_normalise_equals_numpy():
    images = pictures(4)

    expected = (images / 255.0 - np.array(MEAN)) / np.array(STD)
    found = normalise(images, MEAN, STD, jnp.float32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


SIZE, BATCH = 23, 4
STREAM = Stream(SIZE, BATCH, Augment(crop=2, flip=True), MEAN, STD)
DATA = pictures(SIZE), np.arange(SIZE) % 10
KEY = jax.random.key(11)


batch_of = jax.jit(Stream.batch, static_argnums=0)
examples_of = jax.jit(Stream.examples, static_argnums=0)


def epoch_batches(stream, epoch, order=None):
    order = stream.order(KEY, epoch) if order is None else order
    first = epoch * stream.steps
    steps = range(first, first + stream.steps)
    return [batch_of(stream, DATA, order, KEY, step) for step in steps]


def looks(batches):
    """Images by their position in the data set."""
    return {
        int(index): np.asarray(image)
        for batch in batches
        for index, image in zip(batch.index, batch.images, strict=True)
    }


def assert_equal_where_both(found, expected, at_least):
    common = found.keys() & expected.keys()
    assert len(common) >= at_least
    for index in common:
        np.testing.assert_array_equal(found[index], expected[index])


@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_visits_steps_times_batch_examples_once(epoch):
    batches = epoch_batches(STREAM, epoch)

    index = np.concatenate([batch.index for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    assert STREAM.steps == 5
    assert index.shape == (20,)
    assert len(set(index)) == 20
    assert set(index) <= set(range(SIZE))
    np.testing.assert_array_equal(labels, DATA[1][index])


def test_the_order_is_a_permutation_by_key_and_epoch():
    other = jax.random.key(12)
    orders = [STREAM.order(k, epoch) for k in (KEY, other) for epoch in (0, 1)]

    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(SIZE))
    assert len({np.asarray(order).tobytes() for order in orders}) == 4
    np.testing.assert_array_equal(STREAM.order(KEY, 0), orders[0])


def test_an_example_looks_the_same_whatever_batch_order_and_position():
    reference = looks(epoch_batches(STREAM, 2))

    larger = dataclasses.replace(STREAM, batch_size=9)
    assert_equal_where_both(looks(epoch_batches(larger, 2)), reference, 15)
    backwards = STREAM.order(KEY, 2)[::-1]
    turned = looks(epoch_batches(STREAM, 2, order=backwards))
    assert_equal_where_both(turned, reference, 17)


def test_an_unvaried_example_is_itself_normalised():
    plain = dataclasses.replace(STREAM, augment=Augment())

    found = looks(epoch_batches(plain, 1))
    assert len(found) == 20
    for index, image in found.items():
        expected = (DATA[0][index] / 255.0 - np.array(MEAN)) / np.array(STD)
        np.testing.assert_allclose(image, expected, rtol=5e-6, atol=2e-6)


def test_examples_look_different_in_other_epochs_and_under_other_keys():
    def all_images(epoch, key):
        index = np.arange(SIZE)
        folded = fold(key, epoch, "augment")
        return np.asarray(examples_of(STREAM, DATA, index, folded).images)

    reference = all_images(0, KEY)
    for other in (all_images(1, KEY), all_images(0, jax.random.key(12))):
        changed = np.any(other != reference, axis=(1, 2, 3))
        # One of 50 variations each: more than a few equal ones are no accident.
        assert changed.sum() >= SIZE - 3
    # In one epoch, examples are varied on their own: one image, many looks.
    same = np.repeat(DATA[0][:1], SIZE, axis=0), DATA[1]
    varied = examples_of(STREAM, same, np.arange(SIZE), KEY).images
    assert len({np.asarray(image).tobytes() for image in varied}) > SIZE / 2


@pytest.mark.parametrize("how", [STREAM.augment, Augment(crop=1, rotate=20.0)])
def test_four_devices_make_the_same_bits_as_one(how):
    stream = dataclasses.replace(STREAM, augment=how)

    def batch(devices):
        mesh = parallel.make_mesh(jax.devices()[:devices])

        @jax.jit
        def make(data, key, step):
            order = stream.order(key, step // stream.steps)
            found = stream.batch(data, order, key, step)
            return jax.lax.with_sharding_constraint(found, parallel.over_devices(mesh))

        return make(*jax.device_put((DATA, KEY, 7), parallel.replicated(mesh)))

    one, four = batch(1), batch(4)
    assert len(four.images.sharding.device_set) == 4
    jax.tree.map(np.testing.assert_array_equal, four, one)


def test_a_batch_larger_than_the_data_is_told():
    with pytest.raises(UserError, match=r"batch_size=24 .* 23 images"):
        dataclasses.replace(STREAM, batch_size=24)
    assert dataclasses.replace(STREAM, batch_size=23).steps == 1


@pytest.mark.parametrize("size", [1, 10, 256, 600])
@pytest.mark.parametrize("devices", [1, 3, 4])
def test_every_test_image_is_in_the_batches_once(size, devices):
    data = tiny.dataset()
    split = dataclasses.replace(
        data.test, images=pictures(size), labels=np.arange(size, dtype=np.int32)
    )
    mesh = parallel.make_mesh(jax.devices()[:devices])

    placed = device_feed.place(dataclasses.replace(data, test=split), mesh)

    images, labels, valid = map(np.asarray, placed.test)
    assert images.shape[:2] == labels.shape == valid.shape
    assert images.shape[1] % devices == 0
    np.testing.assert_array_equal(images[valid], split.images)
    np.testing.assert_array_equal(labels[valid], split.labels)
    assert all(len(part.sharding.device_set) == devices for part in placed.test)
    np.testing.assert_array_equal(placed.train[0], data.train.images)
