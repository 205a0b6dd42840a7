"""Augmentation inside jit: crop, flip and rotate images by one key per example."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from kdjax.runtime.errors import UserError, unknown

PADDINGS = ("reflect", "zero")


@dataclasses.dataclass(frozen=True)
class Augment:
    """The augmentation of training images.

    Attributes:
        crop: pixels of padding on every side before a random crop of the first size.
        padding: 'reflect' repeats the border pixel (OpenCV's BORDER_REFLECT, NumPy's
            'symmetric': the released CTKD code's); 'zero' is black.
        flip: whether half of the images are mirrored.
        rotate: the largest angle in degrees of a random rotation about the centre,
            bilinear, with the border reflected.
    """

    VERSION: ClassVar[int] = 1
    crop: int = 0
    padding: str = "reflect"
    flip: bool = False
    rotate: float = 0.0

    def __post_init__(self) -> None:
        if self.padding not in PADDINGS:
            raise unknown("padding", self.padding, PADDINGS)
        if self.crop < 0 or not 0 <= self.rotate <= 180:
            raise UserError(
                f"augmentation crop={self.crop}, rotate={self.rotate}: crop must not "
                "be negative, rotate must lie in 0..180"
            )

    @property
    def varies(self) -> bool:
        """Whether images differ from epoch to epoch."""
        return bool(self.crop or self.flip or self.rotate)

    def apply(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Returns augmented images.

        Args:
            images: `[batch, height, width, channels]`, uint8.
            keys: `[batch]` keys; an image's augmentation depends on its own key only.

        Returns:
            The same shape; uint8, or float32 after a rotation.
        """
        if self.crop > min(images.shape[1:3]):
            raise UserError(
                f"augmentation crop={self.crop} is larger than the images "
                f"{images.shape[1:3]}"
            )
        return jax.vmap(self._vary)(images, keys)

    def _vary(self, image: jax.Array, key: jax.Array) -> jax.Array:
        # Always three keys, so that one option does not change the other augmentations.
        crop_key, flip_key, rotate_key = jax.random.split(key, 3)
        height, width, _ = image.shape
        rows, columns = jnp.arange(height), jnp.arange(width)
        if self.crop:
            offset = jax.random.randint(crop_key, (2,), -self.crop, self.crop + 1)
            rows, columns = rows + offset[0], columns + offset[1]
        if self.flip:
            mirrored = jax.random.bernoulli(flip_key)
            columns = jnp.where(mirrored, columns[::-1], columns)
        if self.crop or self.flip:
            # One gather crops and flips, without a padded copy of the image.
            image = image[_reflect(rows, height)[:, None], _reflect(columns, width)]
        # The gather has reflected; pixels from outside the image become black.
        if self.crop and self.padding == "zero":
            row_inside = (rows >= 0) & (rows < height)
            column_inside = (columns >= 0) & (columns < width)
            inside = row_inside[:, None, None] & column_inside[None, :, None]
            image = jnp.where(inside, image, 0)
        if self.rotate:
            angle = jax.random.uniform(rotate_key, (), minval=-1.0) * self.rotate
            image = _rotate(image, jnp.deg2rad(angle))
        return image


def _reflect(index: jax.Array, size: int) -> jax.Array:
    # The border pixel repeats: -1 -> 0, -2 -> 1 and size -> size - 1.
    index = jnp.where(index < 0, -1 - index, index)
    return jnp.where(index >= size, 2 * size - 1 - index, index)


def _rotate(image: jax.Array, angle: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    centre = (height - 1) / 2, (width - 1) / 2
    y = jnp.arange(height)[:, None] - centre[0]
    x = jnp.arange(width)[None, :] - centre[1]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    # The source position of each output pixel: the inverse rotation.
    source = (cos * y - sin * x + centre[0], sin * y + cos * x + centre[1])

    def sample(channel: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(
            channel, source, order=1, mode="reflect"
        )

    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image.astype(jnp.float32))
