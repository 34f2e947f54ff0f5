"""The guided denoising loop of the official models: from noise to a latent under a prompt."""

import dataclasses
import functools

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.errors import InputError
from worldstereo_jax.sampling.guidance import (
    ConditionedVelocityFn,
    guide_one_batch,
    guide_two_pass,
)
from worldstereo_jax.sampling.loop import VelocityFn, sample
from worldstereo_jax.sampling.schedules import Schedule
from worldstereo_jax.sampling.solvers import SolverFactory, euler, unipc

SOLVERS: dict[str, SolverFactory] = {"unipc": unipc, "euler": euler}
GUIDANCE = ("none", "batched", "two-pass")


@dataclasses.dataclass(frozen=True)
class LoopChoices:
    """How a latent is denoised.

    Attributes:
        schedule: noise levels and timesteps.
        solver: "unipc", or "euler" for the distilled models too.
        guidance: "none"; "batched": both texts in one evaluation; "two-pass": one after the other.
        guidance_scale: factor on the difference between the two.

    Raises:
        InputError: for another solver or guidance.
    """

    schedule: Schedule
    solver: str = "unipc"
    guidance: str = "batched"
    guidance_scale: float = 5.0

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, tuple(SOLVERS))
        check_choice("guidance", self.guidance, GUIDANCE)


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is none of those allowed.

    Raises:
        InputError: naming the field and all of them.
    """
    if value not in allowed:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")


def guided_velocity(
    guidance: str,
    velocity: ConditionedVelocityFn,
    text: Float[Array, "1 l ct"],
    negative: Float[Array, "1 l ct"],
    scale: float | Float[Array, ""],
) -> VelocityFn:
    """The transformer under a text, guided away from a negative one where that is chosen.

    Args:
        guidance: one of `GUIDANCE`.
        velocity: the transformer as (text, x, timestep, sigma) -> velocity; text and x have a batch
            axis, which is 2 with batched guidance.
        text, negative: text encoder's output; the negative one is read with guidance only.
        scale: of the guidance; traced, so that one program serves any, or a constant.
    """
    if guidance == "none":
        return functools.partial(velocity, text)
    guide = guide_one_batch if guidance == "batched" else guide_two_pass
    return guide(velocity, text, negative, scale)


def sample_guided(
    choices: LoopChoices,
    velocity: ConditionedVelocityFn,
    text: Float[Array, "1 l ct"],
    negative: Float[Array, "1 l ct"],
    noise: Float[Array, "1 f lh lw z"],
) -> Float[Array, "1 f lh lw z"]:
    """Denoise a latent from given noise.

    Args:
        choices: schedule, solver and guidance.
        velocity, text, negative: see `guided_velocity`.
        noise: of the first noise level.

    Returns:
        The normalised latent.
    """
    scale = choices.guidance_scale
    guided = guided_velocity(choices.guidance, velocity, text, negative, scale)
    return sample(guided, noise, choices.schedule, SOLVERS[choices.solver])
