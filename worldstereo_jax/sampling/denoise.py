"""One evaluation of the video transformer under a clip's conditions."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from pallas_kernels import (
    BlockMask,
    bounding_box,
    order_geometry,
    order_tokens,
    pack_partial_tiles,
    pack_soft_tiles,
)
from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.geometry.cameras import camera_vector, plucker_rays, polar_places
from worldstereo_jax.geometry.normalisation import normalise_unified
from worldstereo_jax.memory.masks import TOKEN
from worldstereo_jax.models.worldstereo import (
    ControlInput,
    MemoryEntries,
    References,
    StreamOrder,
    WarpedMemory,
    WorldStereo,
)
from worldstereo_jax.sampling.conditions import Conditions
from worldstereo_jax.sampling.reading import READING, Reading

MOST_NUMBERS = 1 << 28
"""Bytes that a soft constraint's numbers may take, to be looked into once and not in each layer."""


class Inputs(NamedTuple):
    """Arguments of a call of `WorldStereo`, positional and by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def model_inputs(
    config: ModelConfig,
    noisy_latent: Float[Array, "b f lh lw 16"],
    timestep: Float[Array, "b"],
    conditions: Conditions,
    *,
    reading: Reading = READING,
) -> Inputs:
    """Lay a clip's conditions out as the transformer's arguments.

    Args:
        config: of the transformer.
        noisy_latent: clips at the noise level that `timestep` stands for.
        timestep: 0 .. 1000.
        conditions: with a leading batch axis.
        reading: what builds the masks of references and entries.
    """
    batch, frames, lh, lw, _ = noisy_latent.shape
    height, width = conditions.render_mask.shape[2:]
    is_first = (jnp.arange(frames) == 0).astype(noisy_latent.dtype)[None, :, None, None, None]
    mask = jnp.broadcast_to(is_first, (batch, frames, lh, lw, 4))
    condition = conditions.first_latent[:, None] * is_first
    latent = jnp.concatenate([noisy_latent, mask, condition], axis=-1)

    target_w2c, reference_w2c = jax.vmap(normalise_unified)(
        conditions.w2c, conditions.reference_w2c
    )
    plucker = jax.vmap(lambda w2c, k: plucker_rays(w2c, k, height, width))(
        target_w2c, conditions.intrinsics
    )
    control = ControlInput(
        render_latent=conditions.render_latent,
        render_mask=conditions.render_mask[..., None],
        plucker=plucker,
        enabled=conditions.global_enabled,
    )
    reference = conditions.reference_latent
    references = References(
        latent=jnp.concatenate([reference, jnp.ones_like(reference[..., :4]), reference], axis=-1),
        index=conditions.reference_index,
        camera=jax.vmap(camera_vector)(reference_w2c),
        valid=conditions.reference_valid & conditions.stereo_enabled[:, None],
    )
    warped = WarpedMemory(
        features=conditions.warped_features,
        log_weight=jnp.where(
            conditions.stereo_enabled[:, None, None, None, None],
            conditions.warped_log_weight,
            -jnp.inf,
        ),
    )
    text = jnp.zeros((batch, 1, config.text_dim), noisy_latent.dtype)
    seen, wanted = conditions.reference_geometry, conditions.target_geometry
    entries = conditions.entries if config.entry_width > 0 else None
    # One curve through the world for all sequences: tiles of either meet few of the other. Views
    # stay together, since each attends to all of itself.
    sides = (seen, wanted) if entries is None else (seen, wanted, entries.geometry)
    box = bounding_box(*sides)
    seen_order = order_tokens(seen, box=box, major=seen.frame)
    wanted_order = order_tokens(wanted, box=box)
    wanted_ordered = order_geometry(wanted, wanted_order)
    memory_entries = entry_mask = None
    if entries is not None:
        entry_order = order_tokens(entries.geometry, box=box)
        ordered = order_geometry(entries.geometry, entry_order)
        places = jax.vmap(lambda x, w2c, k: polar_places(x, w2c, k, step=TOKEN))
        camera = (conditions.w2c[:, 0], conditions.intrinsics[:, 0])
        on = conditions.stereo_enabled & conditions.entries_enabled
        memory_entries = MemoryEntries(
            features=entry_order.apply(entries.features),
            place=places(ordered.position, *camera),
            target_place=places(wanted.position, *camera),
            valid=entry_order.apply(entries.valid) & on[:, None],
        )
        entry_mask = evaluated(reading.entry_mask(ordered, wanted_ordered))
    return Inputs(
        args=(latent, timestep, text, None),
        kwargs={
            "control": control,
            "references": references,
            "camera": jax.vmap(camera_vector)(target_w2c),
            "block_mask": evaluated(
                reading.reference_mask(order_geometry(seen, seen_order), wanted_ordered)
            ),
            "token_order": StreamOrder(target=wanted_order, references=seen_order),
            "warped": warped,
            "entries": memory_entries,
            "entry_mask": entry_mask,
        },
    )


def evaluated(mask: BlockMask) -> BlockMask:
    """The mask with its geometry evaluated: all layers share it, so once, not once a layer.

    There is room for all pairs of tokens, so that none is ever lost: a bit each of a hard mask (256
    MB at 45,240 tokens), four bytes of a soft one, whose strength stays a variable. A soft one that
    would take more than MOST_NUMBERS stays as it is.
    """
    if not mask.soft:
        return pack_partial_tiles(mask)
    pairs = mask.q_tiles * mask.tile_q * mask.k_tiles * mask.tile_k
    fits = 4 * pairs * mask.batch * mask.heads <= MOST_NUMBERS
    return pack_soft_tiles(mask) if fits else mask


def denoise(
    model: WorldStereo,
    params: PyTree,
    noisy_latent: Float[Array, "b f lh lw 16"],
    timestep: Float[Array, "b"],
    conditions: Conditions,
    *,
    reading: Reading = READING,
) -> Float[Array, "b f lh lw 16"]:
    """The transformer's output for a batch of noisy clips; `prediction.py` says what it means.

    Args as in `model_inputs`, and the transformer with its parameters.
    """
    args, kwargs = model_inputs(model.config, noisy_latent, timestep, conditions, reading=reading)
    return cast(jax.Array, model.apply({"params": params}, *args, **kwargs))
