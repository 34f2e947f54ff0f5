"""True frames made a little worse before they enter the memory as views to attend to.

At sampling time most stored views were generated: softer, of slightly other colours, with depth
from a network. References are augmented by blur, colour jitter and crop, their depth by bilinear
downsampling (half of them) and Gaussian noise (a tenth), as published for WorldStereo 2.0; the
strengths, which are not published, are this project's choice.
"""

import typing

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, Key

BLUR = 1.5
"""Largest standard deviation of the blur, pixels."""
BRIGHTNESS, CONTRAST, SATURATION = 0.08, 0.1, 0.15
"""Largest change: of colours in [-1, 1], and of the factors on contrast and saturation."""
CROP = 0.1
"""Largest share of either side that a crop takes away."""
LESS_DEPTH, DEPTH_STRIDE = 0.5, 4
"""How often depth is downsampled, and by which factor."""
NOISY_DEPTH, DEPTH_NOISE = 0.1, 0.02
"""How often depth gets noise, and its standard deviation as a share of the depth."""

_RADIUS = 4


class Reference(typing.NamedTuple):
    """A view as it enters the memory.

    image [h, w, 3] in [-1, 1]. depth [h, w]: camera z, world units, 0 = unknown. intrinsics [3, 3]:
    pixels. inherited [h, w]: confidence of depth that was read from the memory, 0 elsewhere.
    """

    image: Float[Array, "h w 3"]
    depth: Float[Array, "h w"]
    intrinsics: Float[Array, "3 3"]
    inherited: Float[Array, "h w"]


def augment_reference(view: Reference, key: Key[Array, ""]) -> Reference:
    """A view cropped, blurred, of other colours, and with worse depth, all at random."""
    crop_key, blur_key, colour_key, depth_key = jax.random.split(key, 4)
    size_key, place_key = jax.random.split(crop_key)
    share = 1 - CROP * jax.random.uniform(size_key)
    view = crop(view, share, jax.random.uniform(place_key, (2,)))
    image = gaussian_blur(view.image, BLUR * jax.random.uniform(blur_key))
    return view._replace(
        image=jitter_colours(image, colour_key), depth=degrade_depth(view.depth, depth_key)
    )


def crop(view: Reference, share: Float[Array, ""], place: Float[Array, "2"]) -> Reference:
    """A window of a view at the view's size, with the intrinsics of what it shows.

    The camera stands where it stood, so that the geometry stays true. Depth takes the nearest
    pixel: a mean over an edge would hang between two surfaces.

    Args:
        view: the view.
        share: of both sides that is kept, in (0, 1].
        place: of the window in the room that is left, down and across, 0 .. 1.
    """
    height, width = view.depth.shape
    size = jnp.array([height, width], jnp.float32)
    start = place * (1 - share) * size
    image = jax.image.scale_and_translate(
        view.image, view.image.shape, (0, 1), jnp.stack([1 / share] * 2), -start / share, "linear",
        antialias=False,
    )  # fmt: skip
    row = (start[0] + share * (jnp.arange(height, dtype=jnp.float32) + 0.5)).astype(jnp.int32)
    column = (start[1] + share * (jnp.arange(width, dtype=jnp.float32) + 0.5)).astype(jnp.int32)
    moved = view.intrinsics - jnp.zeros((3, 3), jnp.float32).at[:2, 2].set(start[::-1])
    scale = jnp.stack([1 / share, 1 / share, jnp.ones((), jnp.float32)])
    depth, inherited = (x[row][:, column] for x in (view.depth, view.inherited))
    return Reference(image, depth, moved * scale[:, None], inherited)


def gaussian_blur(image: Float[Array, "h w 3"], sigma: Float[Array, ""]) -> Float[Array, "h w 3"]:
    """An image under a Gaussian of standard deviation `sigma` pixels; 0 leaves it."""
    offset = jnp.arange(-_RADIUS, _RADIUS + 1, dtype=jnp.float32)
    weight = jnp.exp(-0.5 * (offset / jnp.maximum(sigma, 1e-3)) ** 2)
    weight = weight / weight.sum()
    for axis in (0, 1):
        width = [(_RADIUS, _RADIUS) if side == axis else (0, 0) for side in range(3)]
        padded = jnp.pad(image, width, mode="edge")
        size = image.shape[axis]
        image = sum(
            (
                w * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
                for i, w in enumerate(weight)
            ),
            start=jnp.zeros_like(image),
        )
    return image


def jitter_colours(image: Float[Array, "h w 3"], key: Key[Array, ""]) -> Float[Array, "h w 3"]:
    """An image of another brightness, contrast and saturation, within [-1, 1]."""
    brightness, contrast, saturation = jax.random.uniform(key, (3,), minval=-1.0)
    grey = image.mean(-1, keepdims=True)
    image = grey + (1 + SATURATION * saturation) * (image - grey)
    return ((1 + CONTRAST * contrast) * image + BRIGHTNESS * brightness).clip(-1, 1)


def degrade_depth(depth: Float[Array, "h w"], key: Key[Array, ""]) -> Float[Array, "h w"]:
    """Depth that is coarser, or noisy, or neither; what is unknown stays so."""
    coarse_key, noisy_key, noise_key = jax.random.split(key, 3)
    coarse = jax.random.bernoulli(coarse_key, LESS_DEPTH)
    noisy = jax.random.bernoulli(noisy_key, NOISY_DEPTH)
    depth = jnp.where(coarse, coarsen_depth(depth), depth)
    noise = 1 + DEPTH_NOISE * jax.random.normal(noise_key, depth.shape)
    return jnp.where(noisy, depth * jnp.maximum(noise, 0.5), depth)


def coarsen_depth(depth: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """Depth bilinearly to a quarter of its resolution and back, over the known pixels alone."""
    height, width = depth.shape
    known = (depth > 0).astype(jnp.float32)
    small = (max(1, height // DEPTH_STRIDE), max(1, width // DEPTH_STRIDE))

    def down_and_up(x: Array) -> Array:
        return jax.image.resize(jax.image.resize(x, small, "linear"), depth.shape, "linear")

    weight = down_and_up(known)
    mean = down_and_up(depth * known) / jnp.maximum(weight, 1e-6)
    return jnp.where((known > 0) & (weight > 1e-3), mean, 0.0)
