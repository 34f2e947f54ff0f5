"""One evaluation of an official model for a batch of clips, each under conditions of its own.

Sampling repeats one clip's conditions for the passes of guidance; training has a batch of clips.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels import (
    AttentionSharding,
    BlockMask,
    TokenGeometry,
    TokenOrder,
    by_samples,
)
from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.models.worldstereo import ControlInput, MemoryEntries, References, StreamOrder
from worldstereo_jax.sampling.denoise import Inputs
from worldstereo_jax.sampling.official_conditions import OfficialConditions
from worldstereo_jax.sampling.reading import READING, Reading
from worldstereo_jax.sampling.token_reading import Pattern, token_pattern

Order = typing.TypeVar("Order", StreamOrder | None, TokenOrder | None)


def reading_pattern(
    conditions: OfficialConditions,
    sharding: AttentionSharding | None = None,
    *,
    reading: Reading = READING,
) -> Pattern:
    """The pattern by which clips attend to their views, from the geometry in their conditions.

    Its bits have room for every pair of tokens, so that none is ever lost: 256 MB a clip at the
    working size of 45,240 tokens, of which a scene fills a fifteenth.

    Args:
        conditions: with a leading batch axis before every array.
        sharding: of the attention that the pattern is for; its batch axes split the clips here,
            too. None for one chip.
        reading: what builds the masks: of references, and of entries where there are any.
    """
    wanted = conditions.target_geometry
    others = (conditions.reference_geometry, conditions.entry_geometry)
    if wanted is None or others == (None, None):
        return Pattern(None, None)

    def build(*geometries: TokenGeometry | None) -> Pattern:
        wanted, seen, entries = geometries
        assert wanted is not None
        pattern = token_pattern(wanted, seen, entries, reading=reading)
        count = wanted.position.shape[0]
        return pattern._replace(
            mask=_strength_by_samples(pattern.mask, count),
            entry_mask=_strength_by_samples(pattern.entry_mask, count),
        )

    sequences = (None if part is None else _one_sequence(part) for part in (wanted, *others))
    return by_samples(build, sharding, *sequences)


def _strength_by_samples(mask: BlockMask | None, count: int) -> BlockMask | None:
    """The mask with a strength of each sample's own, so that all of it can be split by samples."""
    if mask is None or mask.strength is None:
        return mask
    strength = jnp.broadcast_to(mask.strength, (count, mask.strength.shape[1]))
    return dataclasses.replace(mask, strength=strength)


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
        on_surface = config.reference_positions == "surface"
        references = References(
            latent=conditions.reference,
            index=conditions.reference_index,
            camera=conditions.reference_camera,
            valid=conditions.reference_valid,
            place=conditions.reference_place if on_surface else None,
            target_place=conditions.target_place if on_surface else None,
        )
        camera = conditions.camera
    latent = jnp.concatenate([noisy_latent, conditions.condition], axis=-1)
    entries, order = conditions.entries, _for_batch(pattern.entry_order, noisy_latent.shape[0])
    if config.entry_width == 0 or entries is None or order is None:
        entries = None
    else:
        entries = MemoryEntries(
            features=order.apply(entries.features),
            place=order.apply(entries.place),
            target_place=entries.target_place,
            valid=order.apply(entries.valid),
        )
    return Inputs(
        args=(latent, timestep, text, image),
        kwargs={
            "control": control,
            "references": references,
            "camera": camera,
            "block_mask": pattern.mask,
            "token_order": _for_batch(pattern.order, noisy_latent.shape[0]),
            "warped": conditions.warped if config.warped_width > 0 else None,
            "entries": entries,
            "entry_mask": None if entries is None else pattern.entry_mask,
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


def without_geometry(conditions: OfficialConditions) -> OfficialConditions:
    """The conditions without what a pattern was built of, which no evaluation reads."""
    return dataclasses.replace(
        conditions, target_geometry=None, reference_geometry=None, entry_geometry=None
    )


def _one_sequence(geometry: TokenGeometry) -> TokenGeometry:
    """Geometry of clips [b, 1, t, ...], whose own batch axis of 1 is dropped."""
    return jax.tree.map(lambda a: a[:, 0], geometry)


def _for_batch(order: Order, batch: int) -> Order:
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:])), order)
