"""One evaluation of the video transformer under a clip's conditions."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.geometry.cameras import (
    camera_vector,
    pixel_grid,
    plucker_rays,
    polar_places,
    project,
    unproject,
)
from worldstereo_jax.geometry.normalisation import normalise_unified
from worldstereo_jax.memory.masks import TOKEN
from worldstereo_jax.models.worldstereo import (
    ControlInput,
    MemoryEntries,
    References,
    WarpedMemory,
    WorldStereo,
)
from worldstereo_jax.sampling.conditions import Conditions
from worldstereo_jax.sampling.reading import READING, Reading
from worldstereo_jax.sampling.token_reading import token_pattern


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
    place = target_place = None
    if config.reference_positions == "surface":
        place, target_place = jax.vmap(surface_places)(conditions)
    reference = conditions.reference_latent
    references = References(
        latent=jnp.concatenate([reference, jnp.ones_like(reference[..., :4]), reference], axis=-1),
        index=conditions.reference_index,
        camera=jax.vmap(camera_vector)(reference_w2c),
        valid=conditions.reference_valid & conditions.stereo_enabled[:, None],
        place=place,
        target_place=target_place,
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
    entries = conditions.entries if config.entry_width > 0 else None
    pattern = token_pattern(
        conditions.target_geometry,
        conditions.reference_geometry,
        None if entries is None else entries.geometry,
        reading=reading,
    )
    memory_entries = None
    if entries is not None and pattern.entry_order is not None:
        places = jax.vmap(lambda x, w2c, k: polar_places(x, w2c, k, step=TOKEN))
        camera = (conditions.w2c[:, 0], conditions.intrinsics[:, 0])
        on = conditions.stereo_enabled & conditions.entries_enabled
        order = pattern.entry_order
        memory_entries = MemoryEntries(
            features=order.apply(entries.features),
            place=places(order.apply(entries.geometry.position), *camera),
            target_place=places(conditions.target_geometry.position, *camera),
            valid=order.apply(entries.valid) & on[:, None],
        )
    return Inputs(
        args=(latent, timestep, text, None),
        kwargs={
            "control": control,
            "references": references,
            "camera": jax.vmap(camera_vector)(target_w2c),
            "block_mask": pattern.mask,
            "token_order": pattern.order,
            "warped": warped,
            "entries": memory_entries,
            "entry_mask": pattern.entry_mask,
        },
    )


def surface_places(
    conditions: Conditions,
) -> tuple[Float[Array, "s 3"], Float[Array, "t 3"]]:
    """Where the surfaces behind the tokens of references and target are, around the first camera.

    For models whose `reference_positions` is "surface": tokens that show the same place stand at
    the same position, whichever views they belong to. A target token without geometry stands where
    its middle would be at the mean depth of the others.

    Args:
        conditions: of one clip, without a batch axis.
    """
    camera = conditions.w2c[0], conditions.intrinsics[0]
    frames, height, width = conditions.render_mask.shape
    target = conditions.target_geometry
    middle = TOKEN * pixel_grid(height // TOKEN, width // TOKEN).reshape(-1, 2)
    position = target.position.reshape(frames, -1, 3)
    known = target.valid.reshape(frames, -1)
    depth = jax.vmap(lambda x, w2c, k: project(x, w2c, k)[1])(
        position, conditions.w2c, conditions.intrinsics
    )
    mean = jnp.where(known, depth, 0.0).sum() / jnp.maximum(known.sum(), 1)
    mean = jnp.where(mean > 0, mean, 1.0)
    guess = jax.vmap(lambda w2c, k: unproject(middle, jnp.full(middle.shape[:1], mean), w2c, k))(
        conditions.w2c, conditions.intrinsics
    )
    points = jnp.where(known[..., None], position, guess).reshape(-1, 3)
    return (
        polar_places(conditions.reference_geometry.position, *camera, step=TOKEN),
        polar_places(points, *camera, step=TOKEN),
    )


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
