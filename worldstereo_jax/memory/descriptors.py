"""Codes of a pixel's surroundings that need no weights, and edge and corner response (row S2).

All are made from brightness alone and do not change when it is multiplied or shifted: the census
code compares pixels, gradients forget the shift, and are measured against the image's own mean
gradient. A learned descriptor, any array [h, w, c], may stand wherever a gradient code does.
"""

import math
import typing

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, UInt32
from worldstereo_jax.geometry.smooth import root

CENSUS_BITS = 32
_DIRECTIONS = 8
_RING = 3  # pixels from the centre to the ring's eight cells
# Two rings of eight and four of sixteen places, an even spread over 9 x 9 pixels.
_CENSUS_OFFSETS = tuple(
    (round(radius * math.sin(angle)), round(radius * math.cos(angle)))
    for radius, count, turn in ((1.5, 8, 0.0), (2.8, 8, 0.39), (4.3, 16, 0.2))
    for angle in (2 * math.pi * i / count + turn for i in range(count))
)


class Response(typing.NamedTuple):
    """How much of an edge and of a corner each pixel is, from 0 (flat) to 1 (strong).

    edge [h, w]: gradient along one direction only. corner [h, w]: along every direction.
    """

    edge: Float[Array, "h w"]
    corner: Float[Array, "h w"]


def brightness(image: Float[Array, "h w 3"]) -> Float[Array, "h w"]:
    """Luma of an image, in its own units (ITU-R BT.601); float32, whatever the image is in."""
    weights = jnp.array([0.299, 0.587, 0.114], jnp.float32)
    return jnp.matmul(image.astype(jnp.float32), weights, precision=jax.lax.Precision.HIGHEST)


def census_code(image: Float[Array, "h w 3"]) -> UInt32[Array, "h w"]:
    """32 bits per pixel: which of 32 places around it are brighter than it (row S2).

    Zabih and Woodfill, "Non-parametric local transforms for computing visual correspondence",
    ECCV 1994. Unchanged by any rising map of brightness. Beyond the border the border is repeated.
    """
    light = _blur(brightness(image), 0.7)
    h, w = light.shape
    wide = jnp.pad(light, 5, mode="edge")
    code = jnp.zeros((h, w), jnp.uint32)
    for bit, (dy, dx) in enumerate(_CENSUS_OFFSETS):
        other = wide[5 + dy : 5 + dy + h, 5 + dx : 5 + dx + w]
        code = code | ((other > light).astype(jnp.uint32) << bit)
    return code


def census_distance(a: UInt32[Array, "..."], b: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Share of the bits in which census codes of shapes that broadcast differ, 0 .. 1."""
    return jnp.bitwise_count(a ^ b).astype(jnp.float32) / CENSUS_BITS


def gradient_code(image: Float[Array, "h w 3"]) -> Float[Array, "h w 72"]:
    """Oriented gradients of the surroundings, about 13 pixels wide, as a unit vector (row S2).

    Half-rectified derivatives in eight directions, pooled at the pixel and at eight places around
    it, wider there: the layout of DAISY (Tola, Lepetit and Fua, PAMI 2010). The norm is kept from
    zero by a share of the image's mean, so that flat places have short codes and not loud noise.
    """
    y, x = _gradient(_blur(brightness(image), 0.8))
    angles = [2 * math.pi * i / _DIRECTIONS for i in range(_DIRECTIONS)]
    maps = jnp.stack(
        [jnp.maximum(x * math.cos(angle) + y * math.sin(angle), 0.0) for angle in angles], -1
    )
    center = _blur(maps, 1.2)
    h, w = center.shape[:2]
    reach = _RING + 1
    around = jnp.pad(_blur(maps, 2.0), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    cells = [center]
    for angle in angles:
        dy, dx = round(_RING * math.sin(angle)), round(_RING * math.cos(angle))
        cells.append(around[reach + dy : reach + dy + h, reach + dx : reach + dx + w])
    code = jnp.concatenate(cells, axis=-1)
    square = (code * code).sum(-1, keepdims=True)
    # The floor is tiny in absolute terms so that a black image gives zeros and no division by 0.
    floor = 0.01 * square.mean() + 1e-12
    return code / jnp.sqrt(square + floor)


def structure_response(image: Float[Array, "h w 3"]) -> Response:
    """Edge and corner response from the structure tensor (rows S2, S22).

    With eigenvalues a >= b of the pooled outer product of gradients (Shi and Tomasi, "Good features
    to track", CVPR 1994): corner = b / (b + m), edge = (a - b) / (a + m), where m is the image's
    mean squared gradient: both forget gain and shift.
    """
    y, x = _gradient(_blur(brightness(image), 0.8))
    xx, xy, yy = (_blur(value, 1.5) for value in (x * x, x * y, y * y))
    mean = 0.5 * (xx + yy)
    spread = root((0.5 * (xx - yy)) ** 2 + xy * xy)
    large, small = mean + spread, jnp.maximum(mean - spread, 0.0)
    unit = 2.0 * mean.mean() + 1e-12
    return Response(edge=(large - small) / (large + unit), corner=small / (small + unit))


def halve(image: Float[Array, "h w c"]) -> Float[Array, "h2 w2 c"]:
    """Half the resolution, each pixel the mean of four; an odd last row or column is left out."""
    h, w, c = image.shape
    even = image[: h // 2 * 2, : w // 2 * 2]
    return even.reshape(h // 2, 2, w // 2, 2, c).mean((1, 3))


def _gradient(light: Float[Array, "h w"]) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    wide = jnp.pad(light, 1, mode="edge")
    return 0.5 * (wide[2:, 1:-1] - wide[:-2, 1:-1]), 0.5 * (wide[1:-1, 2:] - wide[1:-1, :-2])


def _blur(value: Float[Array, "h w *c"], sigma: float) -> Float[Array, "h w *c"]:
    """Gaussian mean over both axes, the border repeated."""
    reach = math.ceil(2.5 * sigma)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
    weights = [weight / sum(weights) for weight in weights]
    for axis in (0, 1):
        pad = [(0, 0)] * value.ndim
        pad[axis] = (reach, reach)
        wide = jnp.pad(value, pad, mode="edge")
        size = value.shape[axis]
        parts = []
        for i, weight in enumerate(weights):
            where = (slice(None),) * axis + (slice(i, i + size),)
            parts.append(weight * wide[where])
        value = sum(parts[1:], parts[0])
    return value
