"""One evaluation of the video transformer under a clip's conditions."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.geometry.cameras import (
    camera_vector,
    plucker_rays,
    polar_places,
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
from worldstereo_jax.sampling.surface_places import surface_places
from worldstereo_jax.sampling.token_reading import token_pattern
from worldstereo_jax.sampling.world import Cameras


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
        place, target_place = jax.vmap(reference_places)(conditions)
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


def reference_places(
    conditions: Conditions,
) -> tuple[Float[Array, "s 3"], Float[Array, "t 3"]]:
    """Places of the tokens of references and target for `References`, around the first camera.

    Args:
        conditions: of one clip, without a batch axis.
    """
    path = Cameras(w2c=conditions.w2c, intrinsics=conditions.intrinsics)
    # Read for tokens without geometry only; conditions keep no lens of the references.
    lens = jnp.broadcast_to(path.intrinsics[0], (conditions.reference_w2c.shape[0], 3, 3))
    views = Cameras(w2c=conditions.reference_w2c, intrinsics=lens)
    _, height, width = conditions.render_mask.shape
    seen, wanted = (
        surface_places(geometry, cameras, path, height=height, width=width)
        for geometry, cameras in (
            (conditions.reference_geometry, views),
            (conditions.target_geometry, path),
        )
    )
    return seen, wanted


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
