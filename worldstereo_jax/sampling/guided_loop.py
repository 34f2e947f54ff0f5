"""The guided denoising loop of the official models: from noise to a latent under a prompt."""

import dataclasses
import functools
from collections.abc import Callable

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.errors import InputError
from worldstereo_jax.sampling.guidance import guide_one_batch, guide_two_pass
from worldstereo_jax.sampling.loop import sample
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


def sample_guided(
    choices: LoopChoices,
    velocity: Callable[[Float[Array, "b l ct"], Array, Array, Array], Array],
    text: Float[Array, "1 l ct"],
    negative: Float[Array, "1 l ct"],
    noise: Float[Array, "1 f lh lw z"],
    *,
    on_step: Callable[[int], None] | None = None,
) -> Float[Array, "1 f lh lw z"]:
    """Denoise a latent from given noise.

    Args:
        choices: schedule, solver and guidance.
        velocity: the transformer as (text, x, timestep, sigma) -> velocity; text and x have a batch
            axis, which is 2 with batched guidance.
        text, negative: text encoder's output; the negative one is read with guidance only.
        noise: of the first noise level.
        on_step: called on the host with the index of each finished step.

    Returns:
        The normalised latent.
    """
    if choices.guidance == "none":
        guided = functools.partial(velocity, text)
    else:
        guide = guide_one_batch if choices.guidance == "batched" else guide_two_pass
        guided = guide(velocity, text, negative, choices.guidance_scale)
    return sample(guided, noise, choices.schedule, SOLVERS[choices.solver], on_step=on_step)
