"""Distillation of the official models: their networks, conditions and frozen parts.

From a memory model of many steps with guidance to the layout of the published distilled one, which
is sampled in few steps without. The control branch stays as it is, in all networks: the camera is
the teacher's. See `distill` for what is learned.
"""

import dataclasses
import typing
from collections.abc import Mapping

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, Key, PyTree, ndarray
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling.guidance import guide_two_pass
from worldstereo_jax.sampling.official_denoise import (
    denoise_official,
    reading_pattern,
    without_geometry,
)
from worldstereo_jax.sampling.schedules import Schedule
from worldstereo_jax.sampling.token_reading import Pattern
from worldstereo_jax.training.distill import Networks
from worldstereo_jax.training.official_fields import from_fields
from worldstereo_jax.training.official_objective import (
    DROP_REFERENCES,
    TrainingClip,
    drop_inputs,
)
from worldstereo_jax.training.state import all_but

GUIDANCE = 5.0
"""The teacher's guidance, as the official models of many steps are sampled with."""


class Told(typing.NamedTuple):
    """What the networks are told of a batch: its clips, and the pattern by which they read."""

    clip: TrainingClip
    pattern: Pattern


def distilled_parameters(params: PyTree) -> PyTree:
    """What trains of student and fake score, all but the control branch: a tree of booleans.

    Raises:
        InputError: for a model without a control branch.
    """
    return all_but(params, "control", "residual")


def official_networks(
    model: WorldStereo,
    schedule: Schedule,
    negative: Float[Array, "l ct"],
    *,
    guidance: float = GUIDANCE,
) -> Networks:
    """The networks of a distillation; all three are the same model with parameters of their own.

    Args:
        model: the transformer; its type, rematerialisation and sharding are the caller's choice.
        schedule: the student's.
        negative: text encoder's output of the negative prompt, as the teacher is sampled with.
        guidance: the teacher's scale (Ho and Salimans 2022); 1 leaves it without.
    """

    def evaluate(params: PyTree, told: Told, text: Array, x: Array, timestep: Array) -> Array:
        clip = told.clip
        return denoise_official(
            model, model.config, params, x, timestep, clip.conditions, text, clip.image,
            told.pattern,
        )  # fmt: skip

    def velocity(params: PyTree, told: Told, x: Array, timestep: Array) -> Array:
        return evaluate(params, told, told.clip.text, x, timestep)

    def guided(params: PyTree, told: Told, x: Array, timestep: Array) -> Array:
        def under(text: Array, x: Array, timestep: Array, sigma: Array) -> Array:
            del sigma
            return evaluate(params, told, text, x, timestep)

        text = told.clip.text
        without = jnp.broadcast_to(negative[None].astype(text.dtype), text.shape)
        # Its sigma is of no use to these models.
        return guide_two_pass(under, text, without, guidance)(x, timestep, timestep)

    return Networks(
        student=velocity,
        fake=velocity,
        teacher=velocity if guidance == 1 else guided,
        schedule=schedule,
        shape=lambda told: told.clip.target.shape,
    )


def read_told(
    fields: Mapping[str, Array | ndarray],
    key: Key[Array, ""],
    *,
    drop_references: float | Array = DROP_REFERENCES,
    **sizes: typing.Any,
) -> Told:
    """What the networks are told of prepared clips; for use inside jit.

    Args:
        fields: of `official_fields.to_fields`, with a leading batch axis; the true latents' shape
            alone is read.
        key: random key of what is taken away.
        drop_references: how often stored views are taken away, so that the student too works on the
            first clip of a scene. Texts stay: the student has no use for guidance.
        **sizes: of `official_fields.from_fields`.
    """
    clip = from_fields(fields, **sizes)
    nothing = jnp.zeros(clip.text.shape[1:], jnp.float32)
    clip = drop_inputs(clip, nothing, key, drop_text=0.0, drop_references=drop_references)
    pattern = reading_pattern(clip.conditions)
    told = dataclasses.replace(clip, conditions=without_geometry(clip.conditions))
    return Told(told, pattern)
