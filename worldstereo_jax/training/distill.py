"""Distribution matching distillation: a model of many steps becomes one of few.

Yin et al. 2023, "One-step diffusion with distribution matching distillation" (DMD), and Yin et al.
2024, "Improved distribution matching distillation for fast image synthesis" (DMD2), as WorldStereo
uses them. Three networks of one form take part:

| network | is | trains |
| --- | --- | --- |
| teacher, the "real score" | the model of many steps, with guidance | never |
| student, the generator | samples along the few-step schedule | by `generator_loss` |
| fake score | a flow-matching model of what the student makes | by `fake_score_loss` |

The student's samples x0 = G(z) follow a distribution p, the teacher's follow q. With both brought
to a noise level, x = a x0 + sigma n (a = 1 - sigma), the gradient of KL(p || q) there is

    E[w (s_fake(x) - s_real(x)) a dG/dtheta]                                   (DMD, equation 7)

for w = 1, and by Tweedie's formula, s(x) = (a mu(x) - x) / sigma^2 with mu the predicted x0, the
scores differ by (a / sigma^2) (mu_fake - mu_real). A weight w of (sigma^2 / a^2) / norm with
norm = mean |x0 - mu_real| makes levels and samples alike in size (DMD, equation 8 and algorithm 2),
so that

    gradient = (mu_fake - mu_real) / mean |x0 - mu_real|,

which `matching_gradient` computes. DMD2's changes are in the rest: no regression onto the teacher's
samples, several updates of the fake score for each of the student, and the student is trained on
the inputs that it meets when it samples: those of its own earlier steps. Of DMD2 the GAN term is
left out, so that no data are needed but prompts and conditions. The gradient runs through the last
step of a rollout alone, whose length is drawn anew in every step; the steps are the sampler's own
(`sampling.loop.sample_until`, deterministic Euler steps as the distilled official model is sampled
with, where DMD2 draws new noise between its steps).

All is generic in the networks: `Networks` holds functions, parameters are any tree.
"""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from worldstereo_jax.array_types import Array, Float, Int, Key, PyTree
from worldstereo_jax.sampling.loop import sample_until
from worldstereo_jax.sampling.noise import unit_noise
from worldstereo_jax.sampling.prediction import add_noise, flow_target, flow_x0
from worldstereo_jax.sampling.schedules import TRAIN_TIMESTEPS, Schedule
from worldstereo_jax.sampling.solvers import dmd
from worldstereo_jax.training.official_objective import SHIFT, stratified_sigmas

LEVELS = (0.02, 0.98)
"""Noise levels, before their shift, at which scores are compared: where nothing is left of a clip
or of the noise, there is nothing to learn (DMD takes the same)."""

Metrics = dict[str, Array]
Velocity = Callable[[PyTree, typing.Any, Array, Array], Array]
"""(params, conditions, x [b, ...], timestep [b] in 0..1000) -> velocity [b, ...]."""


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the three networks compute; holds no arrays.

    Attributes:
        student, fake: under the conditions as they are.
        teacher: with guidance.
        schedule: the few steps that the student samples in; the last one goes to sigma 0.
        shape: from conditions to the shape [b, ...] of their clips.
    """

    student: Velocity
    fake: Velocity
    teacher: Velocity
    schedule: Schedule
    shape: Callable[[typing.Any], tuple[int, ...]]


@struct.dataclass
@typing.no_type_check
class Draws:
    """The random numbers of one update.

    Attributes:
        start: what the student starts from, standard normal [b, ...].
        last: int32 scalar, the number of the rollout's last step, 0 .. schedule.steps - 1; one for
            the whole batch.
        sigma: noise level at which scores are compared, or the fake score is trained [b].
        noise: that brings the student's clips to it, standard normal [b, ...].
    """

    start: jax.Array
    last: jax.Array
    sigma: jax.Array
    noise: jax.Array


def draw(
    key: Key[Array, ""], shape: tuple[int, ...], schedule: Schedule, *, shift: float = SHIFT
) -> Draws:
    """Draw what one update needs; rollouts of every length are as likely.

    Args:
        key: random key.
        shape: of a batch of clips [b, ...].
        schedule: the student's.
        shift: flow shift of the noise levels.
    """
    start_key, last_key, sigma_key, noise_key = jax.random.split(key, 4)
    return Draws(
        start=unit_noise(start_key, shape),
        last=jax.random.randint(last_key, (), 0, schedule.steps),
        sigma=stratified_sigmas(sigma_key, shape[0], shift, within=LEVELS),
        noise=unit_noise(noise_key, shape),
    )


def generator_loss(
    networks: Networks,
    student: PyTree,
    teacher: PyTree,
    fake: PyTree,
    conditions: typing.Any,
    draws: Draws,
) -> tuple[Float[Array, ""], Metrics]:
    """A loss whose gradient is that of the divergence of student and teacher.

    It is 0.5 mean (x0 - sg(x0 - gradient))^2 with sg the stop-gradient (DMD, section 3.2), whose
    derivative by x0 is `matching_gradient` (over the number of elements). No gradient reaches
    teacher and fake score, nor the student in the steps before the rollout's last.

    Args:
        networks: what they compute.
        student, teacher, fake: parameters.
        conditions: of a batch.
        draws: of `draw`.

    Returns:
        The loss, and `gap`: mean |mu_fake - mu_real| in units of mean |x0 - mu_real|, by which one
        sees how far the student is from the teacher (as far as the fake score follows).
    """
    x, _ = rollout(networks, student, conditions, draws.start, draws.last)
    x0 = _student_prediction(networks, student, conditions, x, draws.last)
    made = jax.lax.stop_gradient(x0)
    noisy = add_noise(made, draws.noise, draws.sigma)
    gradient = matching_gradient(
        made,
        real=predict(networks.teacher, teacher, conditions, noisy, draws.sigma),
        fake=predict(networks.fake, fake, conditions, noisy, draws.sigma),
    )
    # Constants, whatever the scores depend on: that of the fake score has a loss of its own.
    gradient = jax.lax.stop_gradient(gradient)
    loss = 0.5 * jnp.mean((x0 - (made - gradient)) ** 2)
    return loss, {"gap": jnp.abs(gradient).mean()}


def fake_score_loss(
    networks: Networks, fake: PyTree, student: PyTree, conditions: typing.Any, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Flow-matching loss of the fake score on what the student makes (DMD, equation 6).

    No gradient reaches the student.

    Args:
        networks: what they compute.
        fake, student: parameters.
        conditions: of a batch.
        draws: of `draw`.
    """
    _, x0 = rollout(networks, student, conditions, draws.start, draws.last + 1)
    noisy = add_noise(x0, draws.noise, draws.sigma)
    found = networks.fake(fake, conditions, noisy, draws.sigma * TRAIN_TIMESTEPS)
    error = found.astype(jnp.float32) - flow_target(x0, draws.noise)
    return jnp.mean(error**2), {}


def rollout(
    networks: Networks,
    student: PyTree,
    conditions: typing.Any,
    start: Float[Array, "b ..."],
    steps: Int[Array, ""],
) -> tuple[Float[Array, "b ..."], Float[Array, "b ..."]]:
    """The student's first steps, as the sampler takes them, without any gradient.

    Args:
        networks: what they compute.
        student: parameters.
        conditions: of a batch.
        start: noise.
        steps: how many; may be traced.

    Returns:
        See `sampling.loop.sample_until`.
    """
    student, conditions, start = jax.lax.stop_gradient((student, conditions, start))

    def velocity(x: Array, timestep: Array, sigma: Array) -> Array:
        del sigma
        return networks.student(student, conditions, x, jnp.broadcast_to(timestep, x.shape[:1]))

    return sample_until(velocity, start, networks.schedule, dmd, steps)


def predict(
    velocity: Velocity,
    params: PyTree,
    conditions: typing.Any,
    noisy: Float[Array, "b ..."],
    sigma: Float[Array, "b"],
) -> Float[Array, "b ..."]:
    """The x0 that a network predicts at noise levels: mu(x) = x - sigma v, float32."""
    found = velocity(params, conditions, noisy, sigma * TRAIN_TIMESTEPS).astype(jnp.float32)
    return flow_x0(found, noisy, sigma)


def matching_gradient(
    x0: Float[Array, "b ..."], *, real: Float[Array, "b ..."], fake: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
    """(mu_fake - mu_real) / mean |x0 - mu_real|, the mean over each clip; see the module's head."""
    norm = jnp.abs(x0 - real).mean(tuple(range(1, x0.ndim)), keepdims=True)
    # Only a clip that is the teacher's prediction to the bit has a norm of 0, and no gradient.
    return (fake - real) / jnp.maximum(norm, 1e-6)


def _student_prediction(
    networks: Networks,
    student: PyTree,
    conditions: typing.Any,
    x: Float[Array, "b ..."],
    step: Int[Array, ""],
) -> Float[Array, "b ..."]:
    """The x0 that the student predicts in one of its steps."""
    timestep = jnp.asarray(networks.schedule.timesteps)[step]
    sigma = jnp.asarray(networks.schedule.sigmas)[step]
    told = jnp.broadcast_to(timestep, x.shape[:1])
    velocity = networks.student(student, conditions, x, told).astype(jnp.float32)
    return flow_x0(velocity, x, sigma)
