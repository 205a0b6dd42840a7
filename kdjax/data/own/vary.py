"""Augmentation of one's own images: `Augment`, random resized crops, colour jitter."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from kdjax.data.augment import Augment
from kdjax.data.own.host_vary import HostVary
from kdjax.runtime.errors import UserError
from kdjax.runtime.rng import fold

_ATTEMPTS = 10  # to find a part with the sampled area and ratio, as in `streaming.crop`
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL makes grey of RGB


@dataclasses.dataclass(frozen=True)
class Vary:
    """The augmentation of one's own training images, in this order.

    Attributes:
        area: smallest and largest part of the image's area that is cut out at random
            and resized to the whole; () or (1, 1): no random part.
        ratio: smallest and largest width over height of that part.
        crop: see `Augment`, also for padding, flip and rotate.
        padding: 'reflect' or 'zero'.
        flip: whether half of the images are mirrored.
        rotate: the largest angle in degrees.
        jitter: strengths of brightness, contrast and saturation, each from 0 to 1, in
            this order; a factor is sampled from 1 - strength to 1 + strength. (): none.

    Images in memory are cut to the networks' size first, so `area` is a share of that
    middle part; streamed images are cut out of the whole file.

    References: the random part is C. Szegedy et al., "Going Deeper with Convolutions",
    2015; the colours are torchvision's ColorJitter, whose order is random there.
    """

    VERSION: ClassVar[int] = 1
    crop: int = 0
    padding: str = "reflect"
    flip: bool = False
    rotate: float = 0.0
    area: tuple[float, ...] = ()
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    jitter: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._plain()  # which checks its fields
        for name, most in (("area", 1.0), ("ratio", math.inf)):
            value = getattr(self, name)
            if name == "area" and not value:
                continue
            if len(value) != 2 or not 0 < value[0] <= value[1] <= most:
                raise UserError(
                    f"augmentation {name}={value!r} must be two positive numbers, the "
                    "smaller one first" + ", of at most 1" * (name == "area")
                )
        if self.jitter and (
            len(self.jitter) != 3 or not all(0 <= one <= 1 for one in self.jitter)
        ):
            raise UserError(
                f"augmentation jitter={self.jitter!r} must be three strengths from 0 "
                "to 1: brightness, contrast, saturation"
            )

    @property
    def cuts(self) -> bool:
        """Whether random parts are cut out."""
        return bool(self.area) and self.area != (1.0, 1.0)

    @property
    def varies(self) -> bool:
        """Whether images differ from epoch to epoch."""
        return self._plain().varies or self.cuts or any(self.jitter)

    def apply(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Returns augmented images; without `area` and `jitter` those of `Augment`.

        Args:
            images: `[batch, height, width, channels]`, uint8.
            keys: `[batch]` random keys; an image's result depends on its own key only.

        Returns:
            The same shape; uint8, or float32 from 0 to 255 after a change that
            interpolates.
        """
        if self.cuts:
            cut_keys = jax.vmap(lambda key: fold(key, "area"))(keys)
            images = jax.vmap(self._cut)(images, cut_keys)
        images = self._plain().apply(images, keys)
        if any(self.jitter):
            colour_keys = jax.vmap(lambda key: fold(key, "jitter"))(keys)
            images = jax.vmap(self._colour)(images, colour_keys)
        return images

    def on_host(self) -> HostVary:
        """Returns the same augmentation for streamed images."""
        options = dataclasses.asdict(self)
        return HostVary(**{**options, "area": self.area if self.cuts else ()})

    def _plain(self) -> Augment:
        return Augment(self.crop, self.padding, self.flip, self.rotate)

    def _cut(self, image: jax.Array, key: jax.Array) -> jax.Array:
        height, width, _ = image.shape
        place_key, shape_key = jax.random.split(key)
        area, shape = jax.random.uniform(shape_key, (2, _ATTEMPTS))
        area = self.area[0] + area * (self.area[1] - self.area[0])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = jnp.exp(low + shape * (high - low))
        # As `Crop.box`: the first attempt that fits, or the largest central part.
        w = jnp.round(jnp.sqrt(area * (width * height) * ratio))
        h = jnp.round(jnp.sqrt(area * (width * height) / ratio))
        fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
        first, found = jnp.argmax(fits), fits.any()
        widest = min(width, round(height * self.ratio[1]))
        highest = min(height, round(width / self.ratio[0]))
        w, h = jnp.where(found, w[first], widest), jnp.where(found, h[first], highest)
        top, left = jnp.where(
            found,
            jnp.floor(
                jax.random.uniform(place_key, (2,))
                * jnp.stack([height - h + 1, width - w + 1])
            ),
            jnp.stack([(height - h) // 2, (width - w) // 2]),
        )
        image = _stretch(image.astype(jnp.float32), top, h)
        return _stretch(image.swapaxes(0, 1), left, w).swapaxes(0, 1)

    def _colour(self, image: jax.Array, key: jax.Array) -> jax.Array:
        brightness, contrast, saturation = 1 + jnp.asarray(self.jitter) * (
            jax.random.uniform(key, (3,), minval=-1.0)
        )
        image = jnp.clip(image.astype(jnp.float32) * brightness, 0, 255)
        # A grey of one number, as PIL's: the mean of the grey image, a whole number.
        mean = jnp.floor(_grey(image).mean() + 0.5)
        image = jnp.clip(mean + (image - mean) * contrast, 0, 255)
        grey = _grey(image)
        return jnp.clip(grey + (image - grey) * saturation, 0, 255)


def _stretch(image: jax.Array, start: jax.Array, length: jax.Array) -> jax.Array:
    """Returns the rows of a part, scaled to all rows; bilinear, half-pixel centres."""
    rows = image.shape[0]
    place = start + (jnp.arange(rows) + 0.5) * length / rows - 0.5
    below = jnp.floor(place)
    part = (place - below)[:, None, None]
    lower = jnp.clip(below, 0, rows - 1).astype(jnp.int32)
    upper = jnp.clip(below + 1, 0, rows - 1).astype(jnp.int32)
    return image[lower] * (1 - part) + image[upper] * part


def _grey(image: jax.Array) -> jax.Array:
    """Returns the brightness, `[H, W, 1]`."""
    if image.shape[-1] == 1:
        return image
    return (image @ jnp.asarray(_LUMA, image.dtype))[..., None]
