"""The memory's alternatives, each run by the same weights on the same scene and noise.

An alternative says which attention pattern the model runs under and what it is told: the point
render, the references, the warped features. All are changes of a call's arguments.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Key
from worldstereo_jax.evaluation.attention_patterns import (
    EVERY,
    HARD,
    PAIRS,
    PATTERNS,
    SOFT,
    Pattern,
    reading_under,
)
from worldstereo_jax.geometry.depth_alignment import align_depth
from worldstereo_jax.sampling.compiled import CompiledRollout
from worldstereo_jax.sampling.conditions import Conditions, Guidance
from worldstereo_jax.sampling.rollout import Clip, denoise_clip, with_memory_pixels
from worldstereo_jax.sampling.world import Cameras, World, WorldMemory, WorldParams


@dataclasses.dataclass(frozen=True)
class Alternative:
    """One way to make a clip.

    Attributes:
        pattern: name in `PATTERNS`.
        points: whether the global-geometric memory is told.
        references: whether views of the spatial-stereo memory are attended to.
        warps: whether its warped features are told, as input, as keys, and as pixels.
        entries: whether surface entries beyond the views are attended to.
    """

    pattern: str = HARD
    points: bool = True
    references: bool = True
    warps: bool = True
    entries: bool = True


WITH_WARPS: Mapping[str, Alternative] = {
    HARD: Alternative(HARD),
    SOFT: Alternative(SOFT),
    PAIRS: Alternative(PAIRS),
    EVERY: Alternative(EVERY),
    "no references": Alternative(references=False),
    "no entries": Alternative(entries=False),
}
"""Both memories, told apart by the attention to references alone."""
WITHOUT_WARPS: Mapping[str, Alternative] = {
    f"{name}, no warps": dataclasses.replace(WITH_WARPS[name], warps=False, entries=False)
    for name in (HARD, SOFT, PAIRS, EVERY)
}
"""The same, but references are all that the model is told of the spatial-stereo memory."""
GLOBAL_ONLY, NO_MEMORY = "global memory only", "no memory"
ONE_OR_NONE: Mapping[str, Alternative] = {
    GLOBAL_ONLY: Alternative(references=False, warps=False, entries=False),
    NO_MEMORY: Alternative(points=False, references=False, warps=False, entries=False),
}
ALTERNATIVES: Mapping[str, Alternative] = {**WITH_WARPS, **WITHOUT_WARPS, **ONE_OR_NONE}


class Told(NamedTuple):
    """What a model is told: conditions, and whether pixels of the warp may be mixed in."""

    conditions: Conditions
    mixes: Bool[Array, ""]


def told(alternative: Alternative, conditions: Conditions) -> Told:
    """What an alternative tells the model, of what the memories say; without a batch axis.

    Without warps no candidate has a weight, the clip is anchored on the point render as without
    the spatial-stereo memory, and no pixel of the warp is mixed in. References may still be read.
    """
    by_views = alternative.references or alternative.warps or alternative.entries
    conditions = dataclasses.replace(
        conditions,
        global_enabled=conditions.global_enabled & alternative.points,
        stereo_enabled=conditions.stereo_enabled & by_views,
        entries_enabled=conditions.entries_enabled & alternative.entries,
        reference_valid=conditions.reference_valid & alternative.references,
    )
    if by_views and not alternative.warps:
        features = conditions.warped_features
        conditions = dataclasses.replace(
            conditions,
            warped_features=features.at[..., 0, :16].set(conditions.render_latent),
            warped_log_weight=jnp.full_like(conditions.warped_log_weight, -jnp.inf),
        )
    return Told(conditions, conditions.stereo_enabled & alternative.warps)


@dataclasses.dataclass(frozen=True)
class AlternativeRollout:
    """A rollout with one compiled program per attention pattern.

    Attributes:
        rollout: gathers, completes depth, remembers.
        generate: by the pattern's name the function `generate_told`, for one world.
        memoryless_depth: see `depth_without_memory`.
    """

    rollout: CompiledRollout
    generate: Mapping[str, Callable[..., Array]]
    memoryless_depth: Callable[..., Array]

    def clip(
        self,
        alternative: Alternative,
        params: WorldParams,
        gathered: tuple[Conditions, Guidance],
        cameras: Cameras,
        key: Array,
    ) -> Clip:
        """One clip from what the memories say of its path (`CompiledRollout.gather`).

        Where an alternative has no memory at all, its depth knows none either, except that of the
        first frame, which is given; `guidance` holds what the memories say in any case.
        """
        conditions, guidance = gathered
        generate = self.generate[alternative.pattern]
        video = generate(params, told(alternative, conditions), guidance, key)
        if alternative != ONE_OR_NONE[NO_MEMORY]:
            depth = self.rollout.complete_depth(params, video, guidance.depth)
            inherited = guidance.confidence
        else:
            depth = self.memoryless_depth(params, video, guidance.depth[0])
            inherited = jnp.zeros_like(guidance.confidence).at[0].set(guidance.confidence[0])
        return Clip(video, depth, cameras, guidance, inherited)

    def gather(
        self, params: WorldParams, memory: WorldMemory, cameras: Cameras
    ) -> tuple[Conditions, Guidance]:
        """What both memories say of a path."""
        return self.rollout.gather(params, memory, cameras)


def alternative_rollout(world: World, rollout: CompiledRollout) -> AlternativeRollout:
    """The programs of every pattern, compiled when they are first called.

    Args:
        world: networks and sizes.
        rollout: compiled for them.
    """

    def program(name: str) -> Callable[..., Array]:
        return jax.jit(lambda *args: generate_told(world, PATTERNS[name], *args))

    return AlternativeRollout(
        rollout=rollout,
        generate={name: program(name) for name in PATTERNS},
        memoryless_depth=jax.jit(lambda *args: depth_without_memory(world, *args)),
    )


def generate_told(
    world: World,
    pattern: Pattern,
    params: WorldParams,
    what: Told,
    guidance: Guidance,
    key: Key[Array, ""],
) -> Float[Array, "f h w 3"]:
    """`generate_clip` under a pattern, with pixels of the warp mixed in only where that is told.

    Args:
        world: networks and sizes.
        pattern: of attention to references.
        params: of the networks.
        what: from `told`.
        guidance: what the memories show of the path.
        key: random key of the noise.

    Returns:
        Frames in [-1, 1].
    """
    world = dataclasses.replace(world, reading=reading_under(pattern, world.rollout))
    video, coded_warp = denoise_clip(world, params, what.conditions, key)
    detailed = with_memory_pixels(video, coded_warp, guidance)
    return jnp.where(what.mixes, detailed, video).clip(-1, 1)


def depth_without_memory(
    world: World,
    params: WorldParams,
    video: Float[Array, "f h w 3"],
    first_depth: Float[Array, "h w"],
) -> Float[Array, "f h w"]:
    """Depth of a clip of which only the first frame's is known: all frames take its scale.

    Args:
        world: networks and sizes.
        params: their parameters.
        video: frames in [-1, 1].
        first_depth: camera z of the first frame, 0 where unknown.

    Returns:
        Camera z of every pixel, world units; the first frame's is the given one where known.
    """
    estimate = typing.cast(jax.Array, world.depth.apply({"params": params.depth}, video))
    _, scale, shift = align_depth(estimate[0], first_depth, first_depth > 0)
    # Nothing is taken to be farther than ten times the farthest known point, as in `align_depth`.
    floor = 0.1 / jnp.maximum(first_depth.max(), 1e-12)
    depth = 1.0 / jnp.maximum(scale / jnp.maximum(estimate, 1e-12) + shift, floor)
    return depth.at[0].set(jnp.where(first_depth > 0, first_depth, depth[0]))
