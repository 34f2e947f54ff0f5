"""Filling the holes of a warp or render from around them, by pull and push.

The image is averaged down a pyramid counting covered pixels only (pull), then holes take the
smooth interpolation of the next coarser level (push). What a camera uncovers lies behind what hid
it, so far pixels weigh more than near ones.
"""

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float

# A surface at twice the depth of another weighs 2 to this power as much in a hole beside both.
_FAR_PREFERENCE = 4.0


def fill_holes(
    image: Float[Array, "h w c"],
    hole: Float[Array, "h w"],
    depth: Float[Array, "h w"] | None = None,
) -> Float[Array, "h w c"]:
    """Replace the holes of an image by a smooth continuation of what surrounds them.

    Args:
        image: any channels; its values in holes are not read.
        hole: 1 where there is nothing, 0 where the image is known.
        depth: camera z of known pixels; when given, holes continue the farther surface.

    Returns:
        The image, unchanged where known; 0 everywhere when nothing is known.
    """
    known = hole < 0.5
    weight = known.astype(image.dtype)
    if depth is not None:
        nearest_scale = jnp.maximum(jnp.max(jnp.where(known, depth, 0.0)), 1e-6)
        relative = jnp.clip(depth / nearest_scale, 1e-2, 1.0)
        weight = weight * relative**_FAR_PREFERENCE
    colour = jnp.where(known[..., None], image, 0.0)
    filled, _ = _pull_push(colour, weight)
    return jnp.where(known[..., None], image, filled)


def _pull_push(
    colour: Float[Array, "h w c"], weight: Float[Array, "h w"]
) -> tuple[Float[Array, "h w c"], Float[Array, "h w"]]:
    """Colours and weights for every pixel from those with a weight above 0."""
    height, width = weight.shape
    if min(height, width) <= 1:
        return _whole_mean(colour, weight)
    pad = ((0, height % 2), (0, width % 2))
    rows, columns = (height + 1) // 2, (width + 1) // 2
    held = jnp.pad(weight, pad).reshape(rows, 2, columns, 2)
    carried = jnp.pad(colour * weight[..., None], (*pad, (0, 0)))
    total = held.sum((1, 3))
    coarse = carried.reshape(rows, 2, columns, 2, -1).sum((1, 3))
    coarse = coarse / jnp.where(total > 0, total, 1.0)[..., None]
    # The mean over known pixels: how many there are must not outvote how far they are.
    coarse, coarse_weight = _pull_push(coarse, total / jnp.maximum((held > 0).sum((1, 3)), 1))

    def enlarge(value: Float[Array, "a b c"]) -> Float[Array, "h w c"]:
        size = (2 * rows, 2 * columns, value.shape[-1])
        return jax.image.resize(value, size, "linear")[:height, :width]

    # Weights are interpolated with the colours, so that a far side reaches further into a hole.
    pushed_weight = enlarge(coarse_weight[..., None])[..., 0]
    pushed = enlarge(coarse * coarse_weight[..., None])
    pushed = pushed / jnp.where(pushed_weight > 0, pushed_weight, 1.0)[..., None]
    known = weight > 0
    return (
        jnp.where(known[..., None], colour, pushed),
        jnp.where(known, weight, pushed_weight),
    )


def _whole_mean(
    colour: Float[Array, "h w c"], weight: Float[Array, "h w"]
) -> tuple[Float[Array, "h w c"], Float[Array, "h w"]]:
    total = weight.sum()
    mean = (colour * weight[..., None]).sum((0, 1)) / jnp.where(total > 0, total, 1.0)
    known = weight > 0
    held = total / jnp.maximum(known.sum(), 1)
    return (
        jnp.where(known[..., None], colour, mean[None, None]),
        jnp.where(known, weight, held),
    )
