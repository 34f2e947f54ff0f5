"""Filling the holes of a warp or render from around them: the broad mean and the nearest, mixed.

The broad mean comes by pull and push: the image is averaged down a pyramid counting covered pixels
only (pull), then holes take the smooth interpolation of the next coarser level (push). Beside it
stands the nearest covered pixel, which carries on what touches the hole; the errors of the two are
different ones, and their mean is better than either. A few steps of diffusion take out the seams.
What a camera uncovers lies behind what hid it, so far pixels weigh more than near ones.
"""

import itertools

import jax.numpy as jnp
import numpy as np
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.memory.surface import inverse_depth

# A surface at twice the depth of another weighs 2 to this power as much in a hole beside both.
_FAR_PREFERENCE = 4.0
# And is taken for nearest up to its depth to this power times as far away.
_FAR_REACH = 0.5
# Shares of the picture's mean depth beyond which no surface counts as nearer, or as farther: a sky
# is not drawn into all holes of the scene before it, nor takes the difference out of the rest.
_NEAREST, _FARTHEST = 0.125, 3.0
_DIFFUSIONS = 10
# Share of the nearest known pixel against the broad mean. Half is best on average; more of the
# nearest goes wrong less badly where one wall fills all that comes into view.
_NEAREST_SHARE = 0.7
# Share of the shorter side over which a hole turns into the prior's broad colours, and that at
# which it gets its grain: nearer by, grain that is not the right one is worse than none.
_PRIOR_REACH = 1.0
_GRAIN_REACH = 0.8
_ROWS = 6  # rows to either side that a row's mean is smoothed over


def fill_holes(
    image: Float[Array, "h w c"],
    hole: Float[Array, "h w"],
    depth: Float[Array, "h w"] | None = None,
    prior: Float[Array, "h w c"] | None = None,
) -> Float[Array, "h w c"]:
    """Replace the holes of an image by a smooth continuation of what surrounds them.

    Args:
        image: any channels; its values in holes are not read.
        hole: 1 where there is nothing, 0 where the image is known.
        depth: camera z of known pixels; when given, holes continue the farther surface.
        prior: what to expect far from all that is known; when given, holes turn first into the
            means of its rows, and farther away into the prior itself.

    Returns:
        The image, unchanged where known; where nothing at all is known the prior, or 0.
    """
    known = hole < 0.5
    relative = jnp.ones_like(hole)
    if depth is not None:
        inverse = jnp.where(known, inverse_depth(depth), 0.0)
        # The harmonic mean, in which a sky has no say.
        mean = inverse.sum() / jnp.maximum((inverse > 0).sum(dtype=inverse.dtype), 1.0)
        relative = jnp.clip(depth * mean, _NEAREST, _FARTHEST)
    colour = jnp.where(known[..., None], image, 0.0)
    broad, _ = _pull_push(colour, jnp.where(known, relative**_FAR_PREFERENCE, 0.0))
    row, column = nearest_known(known, jnp.where(known, relative, 1.0) ** _FAR_REACH)
    mixed = broad + _NEAREST_SHARE * (colour[row, column] - broad)
    mixed = _diffuse(jnp.where(known[..., None], colour, mixed), known)
    if prior is not None:
        rows, columns = jnp.indices(known.shape)
        away = jnp.hypot(
            *((a - b).astype(jnp.float32) for a, b in ((row, rows), (column, columns)))
        )
        away = jnp.where(known.any(), away / min(known.shape), jnp.inf)
        broad_prior = row_means(prior)
        trust = jnp.exp(-away / _PRIOR_REACH)
        mixed = broad_prior + trust[..., None] * (mixed - broad_prior)
        grain = 1.0 - jnp.exp(-((away / _GRAIN_REACH) ** 4))
        mixed = mixed + grain[..., None] * (prior - mixed)
    return jnp.where(known[..., None], image, mixed)


def row_means(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Every pixel as the smoothed mean of its row: sky above, ground below, and no more."""
    height = image.shape[0]
    around = jnp.arange(height)[:, None] + jnp.arange(-_ROWS, _ROWS + 1)[None]
    means = image.mean(1)[jnp.clip(around, 0, height - 1)].mean(1)
    return jnp.broadcast_to(means[:, None], image.shape)


def nearest_known(
    known: Bool[Array, "h w"], reach: Float[Array, "h w"]
) -> tuple[Int[Array, "h w"], Int[Array, "h w"]]:
    """Row and column of the known pixel nearest to each pixel, its distance divided by its `reach`.

    By jump flooding (Rong and Tan 2006): nearly always the nearest, always a near one. Where
    nothing is known the answer is the pixel itself.
    """
    height, width = known.shape
    rows = jnp.broadcast_to(jnp.arange(height, dtype=jnp.int32)[:, None], known.shape)
    columns = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None, :], known.shape)
    far = jnp.float32(jnp.inf)

    def offer(best: tuple[Array, Array, Array, Array], step: Array):
        row, column, scale, cost = best
        other_row, other_column, other_scale, other_cost = (
            jnp.roll(value, step, axis=(0, 1)) for value in best
        )
        away = ((rows - other_row) ** 2 + (columns - other_column) ** 2).astype(jnp.float32)
        other_cost = jnp.where(jnp.isinf(other_cost), far, away / other_scale**2)
        better = other_cost < cost
        found = (
            jnp.where(better, other_row, row),
            jnp.where(better, other_column, column),
            jnp.where(better, other_scale, scale),
            jnp.where(better, other_cost, cost),
        )
        return found, None

    # Shifts wrap around; a seed from the other side is only farther away than it seems.
    start = (rows, columns, reach, jnp.where(known, 0.0, far))
    longest = 1 << (max(height, width) - 1).bit_length()
    jumps = [longest >> i for i in range(1, longest.bit_length())] + [1]
    around = [step for step in itertools.product((-1, 0, 1), repeat=2) if step != (0, 0)]
    steps = np.array([[j * dy, j * dx] for j in jumps for dy, dx in around], np.int32)
    (row, column, _, _), _ = lax.scan(offer, start, jnp.asarray(steps))
    return row, column


def _diffuse(image: Float[Array, "h w c"], known: Bool[Array, "h w"]) -> Float[Array, "h w c"]:
    """Replace holes by the mean of their four neighbours, `_DIFFUSIONS` times."""

    def smooth(_: Array | int, image: Array) -> Array:
        padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        across = padded[1:-1, :-2] + padded[1:-1, 2:]
        down = padded[:-2, 1:-1] + padded[2:, 1:-1]
        return jnp.where(known[..., None], image, 0.25 * (across + down))

    return lax.fori_loop(0, _DIFFUSIONS, smooth, image)


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
    count = (held > 0).sum((1, 3)).astype(jnp.float32)
    coarse, coarse_weight = _pull_push(coarse, total / jnp.maximum(count, 1.0))

    def enlarge(value: Float[Array, "a b c"]) -> Float[Array, "h w c"]:
        return _doubled(_doubled(value, axis=0), axis=1)[:height, :width]

    # Weights are interpolated with the colours, so that a far side reaches further into a hole.
    pushed_weight = enlarge(coarse_weight[..., None])[..., 0]
    pushed = enlarge(coarse * coarse_weight[..., None])
    pushed = pushed / jnp.where(pushed_weight > 0, pushed_weight, 1.0)[..., None]
    known = weight > 0
    return (
        jnp.where(known[..., None], colour, pushed),
        jnp.where(known, weight, pushed_weight),
    )


def _doubled(value: Float[Array, "a b c"], axis: int) -> Float[Array, "..."]:
    """Twice as many samples along an axis, linearly interpolated, the border repeated.

    What `jax.image.resize` gives, by slices where that multiplies by dense matrices.
    """
    size = value.shape[axis]
    pad = [(0, 0)] * value.ndim
    pad[axis] = (1, 1)
    wide = jnp.pad(value, pad, mode="edge")
    before, after = (lax.slice_in_dim(wide, i, i + size, axis=axis) for i in (0, 2))
    pair = jnp.stack([0.25 * before + 0.75 * value, 0.75 * value + 0.25 * after], axis + 1)
    shape = list(value.shape)
    shape[axis] = 2 * size
    return pair.reshape(shape)


def _whole_mean(
    colour: Float[Array, "h w c"], weight: Float[Array, "h w"]
) -> tuple[Float[Array, "h w c"], Float[Array, "h w"]]:
    total = weight.sum()
    mean = (colour * weight[..., None]).sum((0, 1)) / jnp.where(total > 0, total, 1.0)
    known = weight > 0
    held = total / jnp.maximum(known.sum().astype(jnp.float32), 1.0)
    return (
        jnp.where(known[..., None], colour, mean[None, None]),
        jnp.where(known, weight, held),
    )
