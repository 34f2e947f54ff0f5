"""The spatial-stereo branch of the first paper: each target frame attends to one paired view.

Target and reference latents of a pair lie side by side along the width; attention runs within a
pair, so that the pattern is "frame pair" (row S20). Only the block has reference outputs.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.models.control import ControlBlock
from worldstereo_jax.models.rope import Rotary, rotary_table, target_positions


def stitch(
    target: Float[Array, "b t c"], reference: Float[Array, "b t c"], grid: tuple[int, int, int]
) -> Float[Array, "bf n c"]:
    """Lay pairs side by side along the width: [b * f, h * 2w, c], one row of a batch per pair.

    Args:
        target: tokens in raster order of `grid` = (frames, rows, columns).
        reference: the paired views' tokens in the same order.
        grid: tokens per axis.
    """
    b, _, c = target.shape
    f, h, w = grid
    pair = jnp.concatenate([target.reshape(b, f, h, w, c), reference.reshape(b, f, h, w, c)], 3)
    return pair.reshape(b * f, h * 2 * w, c)


def unstitch(
    pair: Float[Array, "bf n c"], grid: tuple[int, int, int]
) -> tuple[Float[Array, "b t c"], Float[Array, "b t c"]]:
    """The inverse of `stitch`."""
    f, h, w = grid
    b, c = pair.shape[0] // f, pair.shape[-1]
    pair = pair.reshape(b, f, h, 2, w, c)
    target, reference = (pair[:, :, :, side].reshape(b, f * h * w, c) for side in (0, 1))
    return target, reference


def pair_rotary(batch: int, grid: tuple[int, int, int], head_size: int) -> Rotary:
    """Rotary tables of stitched pairs, [b * f, h * 2w, head_size // 2], from a grid f x h x 2w."""
    f, h, w = grid
    table = rotary_table(target_positions(f, h, 2 * w), head_size)

    def per_pair(x: Array) -> Array:
        return jnp.tile(x.reshape(f, h * 2 * w, -1), (batch, 1, 1))

    return Rotary(per_pair(table.cos), per_pair(table.sin))


class StereoBlock(nn.Module):
    """One block of the stereo branch: a control block on stitched pairs.

    Attributes:
        num_heads: attention heads.
        ffn_width: hidden channels of the feed-forward layers.
        dtype: compute type.
    """

    num_heads: int
    ffn_width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        target: Float[Array, "b t c"],
        reference: Float[Array, "b t c"],
        temb: Float[Array, "b ct"],
        grid: tuple[int, int, int],
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b t c"]]:
        """Advance both streams; `grid` = (frames, rows, columns) of the target's tokens."""
        batch, _, width = target.shape
        rotary = pair_rotary(batch, grid, width // self.num_heads)
        block = ControlBlock(self.num_heads, self.ffn_width, self.dtype, name="block")
        pair = block(stitch(target, reference, grid), jnp.repeat(temb, grid[0], axis=0), rotary)
        return unstitch(pair, grid)
