"""The known ways of attending to references, as masks for one and the same model (row S20).

A mask is an argument of a call, so one set of weights runs under each. The target's tokens see one
another under all of them; what differs is which reference tokens a target token sees:

- every reference: all of them, as the official 2.0 does;
- frame pairs: all of the one view that shows most of its frame, as 1.0's branch does (which sees
  nothing else; the target's own attention is the backbone's there, and is kept here);
- correspondence, hard: those that show the same surface, and no others (row S14);
- correspondence, soft: the same up to twice the distance, nearer and more certain ones first (S15).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels import (
    BlockMask,
    TokenGeometry,
    TokenOrder,
    dense_pattern,
    frame_pattern,
    joint_correspondence,
    order_geometry,
    pack_partial_tiles,
    pack_soft_tiles,
)
from worldstereo_jax.memory.masks import best_reference, reference_block_mask
from worldstereo_jax.models.worldstereo import StreamOrder
from worldstereo_jax.sampling.conditions import Conditions
from worldstereo_jax.sampling.reading import READING, Reading
from worldstereo_jax.sampling.world import RolloutConfig

EVERY, PAIRS = "every reference (2.0)", "frame pairs (1.0)"
HARD, SOFT = "correspondence, hard", "correspondence, soft"
SOFT_STRENGTH = 1.0
"""Strength of the soft pattern: half of the attraction, and every disagreement in full."""


class Sides(NamedTuple):
    """Both sides of the attention, their tokens in the order in which they run through the layers.

    reference, target: geometry, batch of b. references, frames: how many views either side has.
    """

    reference: TokenGeometry
    target: TokenGeometry
    references: int
    frames: int


Pattern = Callable[[Sides, int], BlockMask]
"""From both sides and a tile's side in tokens the mask over the joint [references ; target]."""


def sides_of(conditions: Conditions, order: StreamOrder) -> Sides:
    """Both sides of a clip's attention; `conditions` with a batch axis, `order` of their tokens."""

    def ordered(geometry: TokenGeometry, by: TokenOrder | None) -> TokenGeometry:
        return geometry if by is None else order_geometry(geometry, by)

    return Sides(
        reference=ordered(conditions.reference_geometry, order.references),
        target=ordered(conditions.target_geometry, order.target),
        references=conditions.reference_valid.shape[1],
        frames=conditions.w2c.shape[1],
    )


def every_reference(sides: Sides, tile: int = 128) -> BlockMask:
    """Everything sees everything."""
    tokens = sides.reference.length + sides.target.length
    return dense_pattern(tokens, tokens, tile_q=tile, tile_k=tile)


def frame_pairs(sides: Sides, tile: int = 128) -> BlockMask:
    """Each frame of the target and its `best_reference` see each other; references, themselves."""
    views, frames = sides.references, sides.frames
    best = best_reference(sides.target, references=views, frames=frames)
    b = sides.target.valid.shape[0]
    paired = best[:, :, None] == jnp.arange(views)[None, None]
    own = jnp.broadcast_to(jnp.eye(views, dtype=bool)[None], (b, views, views))
    table = jnp.concatenate(
        [
            jnp.concatenate([own, jnp.swapaxes(paired, 1, 2)], axis=2),
            jnp.concatenate([paired, jnp.ones((b, frames, frames), bool)], axis=2),
        ],
        axis=1,
    )
    frame = jnp.concatenate([sides.reference.frame, views + sides.target.frame], axis=1)
    return frame_pattern(frame, frame, table, tile_q=tile, tile_k=tile)


def hard_correspondence(sides: Sides, tile: int = 128) -> BlockMask:
    """The pattern that the shipped weights were trained with."""
    mask = reference_block_mask(sides.reference, sides.target, tile=tile)
    return pack_partial_tiles(mask)


def soft_correspondence(sides: Sides, tile: int = 128) -> BlockMask:
    """The soft constraint at `SOFT_STRENGTH`."""
    mask = joint_correspondence(
        sides.reference, sides.target, strength=SOFT_STRENGTH, tile_q=tile, tile_k=tile
    )
    return pack_soft_tiles(mask)


PATTERNS: Mapping[str, Pattern] = {
    HARD: hard_correspondence,
    SOFT: soft_correspondence,
    PAIRS: frame_pairs,
    EVERY: every_reference,
}


def reading_under(pattern: Pattern, config: RolloutConfig, tile: int = 128) -> Reading:
    """How a world reads its memory when it attends to references under a pattern.

    Args:
        pattern: for instance one of `PATTERNS`.
        config: of the world's rollout.
        tile: side of the mask's tiles in tokens.
    """

    def mask(reference: TokenGeometry, target: TokenGeometry) -> BlockMask:
        return pattern(Sides(reference, target, config.references, config.frames), tile)

    return READING._replace(reference_mask=mask)
