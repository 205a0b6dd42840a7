"""Images of any mode and size become what a network takes."""

import io

import numpy as np
import pytest
from own_images import encoded, pixels
from PIL import Image

from kdjax.data.own import fit
from kdjax.data.pixels import convert, cover, is_grey, upright_size, view
from kdjax.runtime.errors import UserError


def saved(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bilinear(array, height, width):
    """NumPy's twin of PIL's bilinear filter, which averages where it shrinks."""

    def weights(old, new):
        scale = old / new
        support = max(1.0, scale)
        centres = (np.arange(new) + 0.5) * scale
        distance = np.arange(old) + 0.5 - centres[:, None]
        triangle = np.maximum(0, 1 - np.abs(distance) / support)
        return triangle / triangle.sum(axis=1, keepdims=True)

    rows, columns = weights(array.shape[0], height), weights(array.shape[1], width)
    return np.einsum("hi,wj,ijc->hwc", rows, columns, array.astype(float))


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (16, 20), (33, 33)])
def test_the_shorter_side_is_scaled_and_the_middle_cut_out(rng, height, width):
    array = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    seen = view(saved(Image.fromarray(array)), (24, 24, 3))
    scale = 24 / min(height, width)
    h, w = round(height * scale), round(width * scale)
    top, left = (h - 24) // 2, (w - 24) // 2
    expected = bilinear(array, h, w)[top : top + 24, left : left + 24]
    # PIL rounds after each direction.
    np.testing.assert_allclose(seen.astype(float), expected, atol=1.01)


def test_an_image_of_the_size_is_not_touched(rng):
    array = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        view(saved(Image.fromarray(array)), (24, 24, 3)), array
    )
    wide = rng.integers(0, 256, (24, 31, 3), dtype=np.uint8)
    seen = np.asarray(cover(Image.fromarray(wide), 24, 24))
    np.testing.assert_array_equal(seen, wide[:, 3:27])
    # Not square: the size is covered, and what is beyond it cut off.
    seen = np.asarray(cover(Image.fromarray(wide), 20, 31))
    np.testing.assert_array_equal(seen, wide[2:22])


class TestModes:
    def test_grey_becomes_three_equal_channels_and_back(self, rng):
        grey = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        content = saved(Image.fromarray(grey))
        np.testing.assert_array_equal(
            view(content, (16, 16, 3)), np.repeat(grey[..., None], 3, axis=-1)
        )
        np.testing.assert_array_equal(view(content, (16, 16, 1)), grey[..., None])
        colours = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        seen = view(saved(Image.fromarray(colours)), (16, 16, 1))[..., 0]
        np.testing.assert_allclose(
            seen.astype(float), colours @ [0.299, 0.587, 0.114], atol=0.51
        )

    def test_palette(self, rng):
        image = Image.fromarray(pixels(rng)).quantize(16)
        assert image.mode == "P"
        expected = np.asarray(image.convert("RGB"))
        for form in ("PNG", "GIF"):
            np.testing.assert_array_equal(
                view(saved(image, form), (20, 20, 3)), expected
            )

    def test_transparent_parts_become_white(self, rng):
        array = rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)
        array[:8, :, 3], array[8:12, :, 3] = 0, 255
        seen = view(saved(Image.fromarray(array)), (16, 16, 3)).astype(float)
        alpha = array[..., 3:] / 255
        expected = array[..., :3] * alpha + 255 * (1 - alpha)
        np.testing.assert_allclose(seen, expected, atol=1.01)
        assert (seen[:8] == 255).all()
        np.testing.assert_array_equal(seen[8:12], array[8:12, :, :3])
        for mode in ("LA", "P"):
            image = Image.fromarray(array).convert(mode)
            if mode == "P":
                image.info["transparency"] = image.getpixel((0, 0))
            seen = view(saved(image), (16, 16, 3))
            assert (seen[0, 0] == 255).all(), mode

    def test_sixteen_bits_keep_their_upper_eight(self, rng):
        wide = rng.integers(0, 2**16, (16, 16), dtype=np.uint16)
        for form in ("PNG", "TIFF"):
            content = saved(Image.fromarray(wide), form)
            np.testing.assert_array_equal(view(content, (16, 16, 1))[..., 0], wide >> 8)

    def test_cmyk(self, rng):
        array = pixels(rng)
        content = saved(Image.fromarray(array).convert("CMYK"), "JPEG", quality=100)
        seen = view(content, (20, 20, 3)).astype(float)
        assert np.abs(seen - array).mean() < 4

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_photographs_are_turned_as_viewers_show_them(self, rng, orientation):
        array = pixels(rng, 16, 24)
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = saved(Image.fromarray(array), "PNG", exif=exif)
        turned = {
            1: array,
            2: array[:, ::-1],
            3: array[::-1, ::-1],
            4: array[::-1],
            5: array.swapaxes(0, 1),
            6: array.swapaxes(0, 1)[:, ::-1],
            7: array[::-1, ::-1].swapaxes(0, 1),
            8: array.swapaxes(0, 1)[::-1],
        }[orientation]
        with Image.open(io.BytesIO(content)) as image:
            assert upright_size(image) == turned.shape[:2]
        np.testing.assert_array_equal(view(content, turned.shape), turned)

    @pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF"])
    def test_what_is_upright_is_not_copied_and_stays_when_closed(self, rng, form):
        content = saved(Image.fromarray(pixels(rng, 16, 24)), form)
        with Image.open(io.BytesIO(content)) as image:
            upright = convert(image, 3)
            assert (upright is image) == (image.mode == "RGB")
        np.testing.assert_array_equal(upright, view(content, (16, 24, 3)))

    def test_fractions_are_refused(self):
        content = saved(Image.fromarray(np.zeros((16, 16), np.float32)), "TIFF")
        with pytest.raises(ValueError, match="fractions"):
            view(content, (16, 16, 1))
        with pytest.raises(ValueError, match="more than 16 bits"):
            convert(Image.fromarray(np.full((16, 16), 2**20, np.int32)), 1)

    def test_what_is_stored_as_grey(self, rng):
        array = pixels(rng, channels=1)
        image = Image.fromarray(array)
        for mode, grey in (("L", 1), ("1", 1), ("LA", 1), ("RGB", 0), ("P", 0)):
            assert is_grey(image.convert(mode)) == bool(grey)
        assert is_grey(Image.fromarray(array.astype(np.uint16)))


class TestFit:
    def test_the_same_from_arrays_files_and_images(self, rng, tmp_path):
        array = pixels(rng, 30, 40)
        path = tmp_path / "x.png"
        path.write_bytes(encoded(array))
        expected = view(path, (16, 16, 3))
        image = Image.fromarray(array)
        for given in ([path], [str(path)], [image], [array], str(path), image):
            np.testing.assert_array_equal(fit(given, (16, 16, 3)), expected[None])
        np.testing.assert_array_equal(fit(array[None], (16, 16, 3))[0], expected)
        assert fit([], (16, 16, 3)).shape == (0, 16, 16, 3)

    def test_arrays_that_fit_stay(self, rng):
        images = rng.integers(0, 256, (5, 12, 14, 1), dtype=np.uint8)
        np.testing.assert_array_equal(fit(images, (12, 14, 1)), images)
        np.testing.assert_array_equal(fit(images[..., 0], (12, 14, 1)), images)
        assert (fit(images, (12, 14, 3)) == images).all()

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (np.full((2, 9, 9), 0.5), r"float64 pixels, from 0\.5 to 0\.5; give uint8"),
            (np.full((2, 9, 9), np.nan), "image 0 holds nan; give uint8"),
            (np.zeros((2, 9, 9), np.int64), "dtype int64; give uint8"),
            (np.zeros((9, 9), np.uint8), r"shape \(9, 9\); choices: \[N, H, W\]"),
            (np.zeros((2, 9, 9, 4), np.uint8), r"\(2, 9, 9, 4\); choices"),
            (np.zeros((2, 9, 7), np.uint8), "7x9 pixels; the least is 8x8"),
            (["nowhere.jpg"], "nowhere.jpg cannot be read: .*No such file"),
            ([Image.new("L", (3, 30))], "image 0: it is 3x30 pixels; the least is 8x8"),
            ([np.zeros((9, 9))], "image 0 are float64"),
        ],
    )
    def test_mistakes(self, images, message):
        with pytest.raises(UserError, match=message):
            fit(images, (8, 8, 3))
