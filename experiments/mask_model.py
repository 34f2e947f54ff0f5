"""A small model that can only copy: `WorldStereo` without warps, entries or control branch.

What it is told of the view to make is the coarse render as the target's latent, the cameras, and,
where a pattern of attention is given, the references. It predicts what the render lacks, in one
step. All patterns and both kinds of positions have the same parameters.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from experiments.mask_clips import HEIGHT, REFERENCES, WIDTH, CopyClip
from pallas_kernels import BlockMask
from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.evaluation.attention_patterns import (
    EVERY,
    HARD,
    PAIRS,
    PATTERNS,
    SOFT,
    Sides,
    hard_correspondence,
)
from worldstereo_jax.geometry.cameras import camera_vector
from worldstereo_jax.geometry.normalisation import normalise_unified
from worldstereo_jax.memory.masks import TOKEN
from worldstereo_jax.models.rope import (
    apply_rotary,
    real_rotary,
    reference_positions,
    rotary_table,
    target_positions,
)
from worldstereo_jax.models.transformer import PLAIN
from worldstereo_jax.models.worldstereo import References, WorldStereo

NO_REFERENCES = "no references"
BESIDE, ON_SURFACE = "beside the target", "on the surface"
"""Positions of reference tokens: the official ones, and the places of what they show."""
_POSITIONS = {BESIDE: "beside", ON_SURFACE: "surface"}
GRID = (HEIGHT // TOKEN, WIDTH // TOKEN)
TOKENS = GRID[0] * GRID[1]
JOINT = (REFERENCES + 1) * TOKENS
SCALE = 2.5
"""Colours are taken times this, so that their deviation is about 1."""
CONFIG = ModelConfig(
    width=64,
    num_layers=2,
    num_heads=4,
    ffn_width=128,
    text_dim=8,
    in_channels=10,
    out_channels=3,
    freq_dim=32,
    # Few tokens: on a CPU a dense product under the mask is the quickest.
    attention_implementation="reference",
    scan_layers=False,
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """How references are read: `pattern` of `PATTERNS` or NO_REFERENCES, and their positions."""

    pattern: str
    positions: str = BESIDE

    @property
    def name(self) -> str:
        """Both in words."""
        alone = self.pattern == NO_REFERENCES
        return self.pattern if alone else f"{self.pattern}, {self.positions}"


VARIANTS = (
    *(
        Variant(pattern, at)
        for at in (BESIDE, ON_SURFACE)
        for pattern in (HARD, SOFT, PAIRS, EVERY)
    ),
    Variant(NO_REFERENCES),
)
LONGER = tuple(Variant(pattern, at) for at in (BESIDE, ON_SURFACE) for pattern in (HARD, EVERY))
"""Trained once more, for longer and from another start: is what a mask gains time, or luck?"""


def block_mask(variant: Variant, clips: CopyClip) -> BlockMask | None:
    """The mask over [references ; target] of a batch; None without references."""
    if variant.pattern == NO_REFERENCES:
        return None
    sides = Sides(clips.reference_geometry, clips.geometry, REFERENCES, 1)
    return PATTERNS[variant.pattern](sides, JOINT)


def predict(
    variant: Variant, params: PyTree, clips: CopyClip, **apply: typing.Any
) -> tuple[Float[Array, "b rows columns 3"], typing.Any]:
    """The views of a batch as the model makes them, and what else `WorldStereo.apply` returns.

    Args:
        variant: how references are read.
        params: of `WorldStereo(CONFIG)`.
        clips: with a batch axis.
        apply: further arguments of `apply`, which make it return more than the prediction.
    """
    batch = clips.target.shape[0]
    anchor = SCALE * clips.anchor
    latent = jnp.concatenate([anchor, jnp.zeros((*anchor.shape[:-1], 7))], -1)
    w2c, reference_w2c = jax.vmap(normalise_unified)(clips.w2c, clips.reference_w2c)
    references = None
    if variant.pattern != NO_REFERENCES:
        seen = SCALE * clips.references
        on_surface = variant.positions == ON_SURFACE
        references = References(
            latent=jnp.concatenate([seen, jnp.ones((*seen.shape[:-1], 4)), seen], -1),
            index=jnp.broadcast_to(jnp.arange(REFERENCES)[None], (batch, REFERENCES)),
            camera=jax.vmap(camera_vector)(reference_w2c),
            place=clips.reference_place if on_surface else None,
            target_place=clips.place if on_surface else None,
        )
    config = CONFIG.replace(reference_positions=_POSITIONS[variant.positions])
    out = WorldStereo(config).apply(
        {"params": params},
        latent[:, None],
        jnp.full((batch,), 1000.0),
        jnp.zeros((batch, 1, CONFIG.text_dim)),
        references=references,
        camera=jax.vmap(camera_vector)(w2c),
        block_mask=block_mask(variant, clips),
        **apply,
    )
    out, more = typing.cast(typing.Any, out if apply else (out, None))
    return clips.anchor + out[:, 0] / SCALE, more


def attention_on_surface(
    variant: Variant, params: PyTree, clips: CopyClip
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Of the target's attention the share on references, and of that the share on tokens that show
    the same surface by the hard mask: means over layers, heads and the batch's tokens."""
    _, found = predict(
        variant,
        params,
        clips,
        capture_intermediates=lambda module, _: module.name in ("query_norm", "key_norm"),
        mutable=["intermediates"],
    )
    batch, head = clips.target.shape[0], CONFIG.head_size
    if variant.positions == ON_SURFACE:
        rotary = real_rotary(jnp.concatenate([clips.reference_place, clips.place], 1), head)
    else:
        index = jnp.broadcast_to(jnp.arange(REFERENCES)[None], (batch, REFERENCES))
        target = jnp.broadcast_to(target_positions(1, *GRID), (batch, TOKENS, 3))
        at = jnp.concatenate([reference_positions(index, *GRID), target], 1)
        rotary = rotary_table(at, head)
    mask = block_mask(variant, clips)
    if mask is None:
        return jnp.zeros(()), jnp.zeros(())
    pairs = mask.dense_pairs()
    bias = jnp.where(pairs.allowed, 0.0, -jnp.inf)
    if mask.strength is not None:
        bias = bias + jnp.where(pairs.allowed, pairs.bias(mask.strength[:, :, None, None]), 0.0)
    sides = Sides(clips.reference_geometry, clips.geometry, REFERENCES, 1)
    same = hard_correspondence(sides, JOINT).dense()
    own = slice(JOINT - TOKENS, None)
    on_references, on_same = [], []
    for layer in found["intermediates"][PLAIN].values():
        norms = layer["backbone"]["self_attention"]
        q, k = (
            apply_rotary(norms[n]["__call__"][0].reshape(batch, JOINT, -1, head), rotary)
            for n in ("query_norm", "key_norm")
        )
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) * head**-0.5 + bias, -1)
        to_references = weights[:, :, own, : JOINT - TOKENS]
        on_references.append(to_references.sum(-1).mean())
        on_same.append(
            (to_references * same[:, :, own, : JOINT - TOKENS]).sum() / to_references.sum()
        )
    return jnp.stack(on_references).mean(), jnp.stack(on_same).mean()
