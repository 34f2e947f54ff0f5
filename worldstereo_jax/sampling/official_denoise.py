"""One evaluation of an official model for a batch of clips, each under conditions of its own.

Sampling repeats one clip's conditions for the passes of guidance; training has a batch of clips.
"""

import typing

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels import (
    AttentionSharding,
    BlockMask,
    TokenGeometry,
    bounding_box,
    by_samples,
    order_geometry,
    order_tokens,
    pack_partial_tiles,
)
from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.memory.masks import reference_block_mask
from worldstereo_jax.models.worldstereo import ControlInput, References, StreamOrder
from worldstereo_jax.sampling.denoise import Inputs
from worldstereo_jax.sampling.official_conditions import OfficialConditions


class Pattern(typing.NamedTuple):
    """Mask and token order of the correspondence pattern; both None for the dense one.

    A batch axis of 1 serves all clips.
    """

    mask: BlockMask | None
    order: StreamOrder | None


def reading_pattern(
    conditions: OfficialConditions, sharding: AttentionSharding | None = None
) -> Pattern:
    """The pattern by which clips attend to their views, from the geometry in their conditions.

    Its bits have room for every pair of tokens, so that none is ever lost: 256 MB a clip at the
    working size of 45,240 tokens, of which a scene fills a fifteenth.

    Args:
        conditions: with a leading batch axis before every array.
        sharding: of the attention that the pattern is for; its batch axes split the clips here,
            too. None for one chip.
    """
    wanted, seen = conditions.target_geometry, conditions.reference_geometry
    if wanted is None or seen is None:
        return Pattern(None, None)
    return by_samples(_pattern_of, sharding, _one_sequence(wanted), _one_sequence(seen))


def _pattern_of(wanted: TokenGeometry, seen: TokenGeometry) -> Pattern:
    """The correspondence pattern of target and reference tokens, of a batch of clips each."""
    box = bounding_box(seen, wanted)
    seen_order = order_tokens(seen, box=box, major=seen.frame)
    wanted_order = order_tokens(wanted, box=box)
    mask = reference_block_mask(
        order_geometry(seen, seen_order), order_geometry(wanted, wanted_order)
    )
    order = StreamOrder(target=wanted_order, references=seen_order)
    return Pattern(pack_partial_tiles(mask), order)


def official_inputs(
    config: ModelConfig,
    noisy_latent: Float[Array, "b f lh lw 16"],
    timestep: Float[Array, "b"],
    conditions: OfficialConditions,
    text: Float[Array, "b l ct"],
    image: Float[Array, "b m ci"] | None,
    pattern: Pattern,
) -> Inputs:
    """Lay clips' conditions out as the transformer's arguments.

    Args:
        config: of the transformer.
        noisy_latent: clips at the noise level that `timestep` stands for.
        timestep: 0 .. 1000.
        conditions: with a leading batch axis; `reference_valid` None stands for all. Geometry is
            not read, since `pattern` holds it.
        text: text encoder's output.
        image: tokens of the input images, for models that take them.
        pattern: of `reading_pattern`.
    """
    control = ControlInput(
        render_latent=conditions.render_latent,
        render_mask=conditions.render_mask[..., None],
        plucker=conditions.plucker,
    )
    references = camera = None
    if config.camera_width is not None:
        references = References(
            latent=conditions.reference,
            index=conditions.reference_index,
            camera=conditions.reference_camera,
            valid=conditions.reference_valid,
        )
        camera = conditions.camera
    latent = jnp.concatenate([noisy_latent, conditions.condition], axis=-1)
    return Inputs(
        args=(latent, timestep, text, image),
        kwargs={
            "control": control,
            "references": references,
            "camera": camera,
            "block_mask": pattern.mask,
            "token_order": _for_batch(pattern.order, noisy_latent.shape[0]),
        },
    )


def denoise_official(
    model: nn.Module,
    config: ModelConfig,
    params: PyTree,
    noisy_latent: Float[Array, "b f lh lw 16"],
    timestep: Float[Array, "b"],
    conditions: OfficialConditions,
    text: Float[Array, "b l ct"],
    image: Float[Array, "b m ci"] | None,
    pattern: Pattern,
) -> Float[Array, "b f lh lw 16"]:
    """The velocity of a batch of noisy clips.

    Args as in `official_inputs`, and the transformer with its parameters.
    """
    args, kwargs = official_inputs(config, noisy_latent, timestep, conditions, text, image, pattern)
    return typing.cast(Array, model.apply({"params": params}, *args, **kwargs))


def _one_sequence(geometry: TokenGeometry) -> TokenGeometry:
    """Geometry of clips [b, 1, t, ...], whose own batch axis of 1 is dropped."""
    return jax.tree.map(lambda a: a[:, 0], geometry)


def _for_batch(order: StreamOrder | None, batch: int) -> StreamOrder | None:
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:])), order)
