"""Distribution matching against closed forms, and what it does not touch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import distill_toy as toy
from worldstereo_jax.sampling.loop import make_sampler
from worldstereo_jax.sampling.solvers import dmd
from worldstereo_jax.training.distill import (
    LEVELS,
    Draws,
    draw,
    fake_score_loss,
    generator_loss,
    matching_gradient,
    rollout,
)
from worldstereo_jax.training.official_objective import SHIFT

FAKE = {**toy.TEACHER, "score": {"mean": jnp.array(0.7), "log_deviation": jnp.array(-0.2)}}
CONDITIONS = jnp.zeros((3, 40))


@jax.jit
def drawn(key: jax.Array) -> Draws:
    return draw(key, CONDITIONS.shape, toy.SCHEDULE)


def made_draws(last: int, seed: int = 0) -> Draws:
    found = drawn(jax.random.key(seed))
    return dataclasses.replace(found, last=jnp.asarray(last))


def whitened(seed: int, count: int = 64) -> tuple[jax.Array, jax.Array]:
    """Two samples with the first and second moments of independent standard normal numbers."""
    raw = np.random.default_rng(seed).normal(size=(count, 2))
    columns = np.linalg.qr(np.concatenate([np.ones((count, 1)), raw], axis=1))[0]
    first, second = (jnp.asarray(np.sqrt(count) * columns[None, :, i]) for i in (1, 2))
    return first, second


def divergence(student_mean, student_deviation, sigma):
    """KL of the student's normal distribution from the teacher's, both at a noise level."""
    left = 1 - sigma
    own = (left * student_deviation) ** 2 + sigma**2
    other = (left * toy.DEVIATION) ** 2 + sigma**2
    apart = left * (student_mean - toy.MEAN)
    return 0.5 * (jnp.log(other / own) + (own + apart**2) / other - 1)


@pytest.mark.parametrize("sigma", [0.2, 0.6, 0.9])
def test_the_gradient_is_that_of_the_divergence(sigma):
    """Exactly, with a fake score that is right: all is affine, so that moments are all there is.

    The first step makes x0 = gain z + shift of z, a normal distribution of that deviation and mean.
    """
    gain, shift = 0.8, 0.4
    steps = {"gain": jnp.array([gain, 0.0]), "shift": jnp.array([shift, 0.0])}
    student = {**toy.TEACHER, "steps": steps}
    right = {"mean": jnp.array(shift), "log_deviation": jnp.log(jnp.array(gain))}
    fake = {**toy.TEACHER, "score": right}
    start, noise = whitened(1)
    level = jnp.array([sigma])
    draws = Draws(start=start, last=jnp.asarray(0), sigma=level, noise=noise)

    def loss(student):
        return generator_loss(toy.NETWORKS, student, toy.TEACHER, fake, jnp.zeros((1, 64)), draws)

    found = jax.jit(jax.grad(lambda student: loss(student)[0]))(student)["steps"]
    x0 = gain * start + shift
    noisy = (1 - sigma) * x0 + sigma * noise
    velocity = toy.normal_velocity(toy.TEACHER, None, noisy, 1000 * level)
    norm = jnp.abs(x0 - (noisy - sigma * velocity)).mean()
    wanted = jax.jit(jax.grad(divergence, argnums=(0, 1)))(shift, gain, sigma)
    scale = sigma**2 / (1 - sigma) ** 2 / norm
    np.testing.assert_allclose(found["shift"][0], scale * wanted[0], rtol=2e-4)
    np.testing.assert_allclose(found["gain"][0], scale * wanted[1], rtol=2e-4)


def test_a_clip_does_not_weigh_on_another():
    """The norm is each clip's own, and a clip that is the teacher's prediction has no gradient."""
    real, fake = jnp.ones((2, 5)), jnp.full((2, 5), 3.0)
    x0 = jnp.stack([jnp.full(5, 2.0), jnp.full(5, 9.0)])
    found = matching_gradient(x0, real=real, fake=fake)
    np.testing.assert_allclose(found[:, 0], [2.0, 0.25])
    same = matching_gradient(real, real=real, fake=real)
    np.testing.assert_array_equal(same, 0.0)


@pytest.mark.parametrize("last", [0, 1])
def test_the_gradient_runs_through_the_last_step_alone(last):
    """Each step has parameters of its own here; teacher, fake score and other steps get none."""

    def loss(student, teacher, fake):
        draws = made_draws(last)
        return generator_loss(toy.NETWORKS, student, teacher, fake, CONDITIONS, draws)[0]

    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(toy.TEACHER, toy.TEACHER, FAKE)
    student, *others = grads
    for leaf in jax.tree.leaves(others):
        np.testing.assert_array_equal(leaf, 0.0)
    for name in ("gain", "shift"):
        assert abs(student["steps"][name][last]) > 1e-3
        assert student["steps"][name][1 - last] == 0.0
    np.testing.assert_array_equal(jax.tree.leaves(student["score"]), 0.0)


def test_the_fake_score_learns_what_the_student_makes_and_moves_it_not():
    def loss(fake, student):
        return fake_score_loss(toy.NETWORKS, fake, student, CONDITIONS, made_draws(1))[0]

    fake, student = jax.jit(jax.grad(loss, argnums=(0, 1)))(FAKE, toy.TEACHER)
    assert abs(fake["score"]["mean"]) > 1e-3
    for leaf in jax.tree.leaves(student):
        np.testing.assert_array_equal(leaf, 0.0)


def test_the_fake_score_is_right_where_its_loss_is_least():
    """At the mean and deviation of what the student makes the gradient vanishes: by the moments."""
    start, noise = whitened(2)
    draws = Draws(start, jnp.asarray(0), jnp.array([0.5]), noise)
    gain, shift = (toy.TEACHER["steps"][name][0] for name in ("gain", "shift"))

    @jax.jit
    @jax.grad
    def gradient(score):
        fake = {**toy.TEACHER, "score": score}
        return fake_score_loss(toy.NETWORKS, fake, toy.TEACHER, jnp.zeros((1, 64)), draws)[0]

    def slope(mean, deviation):
        score = {"mean": np.float32(mean), "log_deviation": np.log(np.float32(deviation))}
        return np.array(jax.tree.leaves(gradient(score)))

    np.testing.assert_allclose(slope(shift, gain), 0.0, atol=1e-5)
    assert np.abs(slope(shift + 0.1, gain)).max() > 1e-2


def test_a_rollout_is_the_sampler(unchecked):
    """To the bit: at every length, which is no constant, and at the full one also the clip."""

    def velocity(params, x, timestep):
        return params * jnp.sin(x * timestep / 300)

    def student(params, told, x, timestep):
        return velocity(params, x, timestep[0])

    networks = dataclasses.replace(toy.NETWORKS, student=student)
    params, start = jnp.array(0.7), jax.random.normal(jax.random.key(3), (2, 30))
    timesteps, sigmas = toy.SCHEDULE.timesteps, toy.SCHEDULE.sigmas

    def run(steps):
        return rollout(networks, params, None, start, steps)

    def sampled(count: int, end: float):
        """By the sampler, along the schedule's first levels and then to another."""
        levels = np.append(sigmas[:count], np.float32(end))
        cut = dataclasses.replace(toy.SCHEDULE, timesteps=timesteps[:count].copy(), sigmas=levels)
        sampler = make_sampler(lambda params, x, t, sigma: velocity(params, x, t), cut, dmd)
        return sampler(params, start)

    jitted = jax.jit(run)
    # An operation at a time: fused in another loop, they round in another way.
    with jax.disable_jit():
        for count in (1, 2):
            x, x0 = run(jnp.asarray(count))
            np.testing.assert_array_equal(x, sampled(count, sigmas[count]))
            # The prediction in a step is where the sampler would go in one step to sigma 0.
            np.testing.assert_array_equal(x0, sampled(count, 0.0))
        np.testing.assert_array_equal(x, x0)
        np.testing.assert_array_equal(run(jnp.asarray(0))[0], start)
    np.testing.assert_allclose(jitted(jnp.asarray(2)), (x, x0), rtol=1e-5)


def test_draws_reach_every_step_and_the_levels_between_their_ends():
    draws = jax.vmap(lambda key: draw(key, (4, 2), toy.SCHEDULE))
    many = jax.device_get(jax.jit(lambda key: draws(jax.random.split(key, 400)))(jax.random.key(0)))
    share = np.mean(np.asarray(many.last) == 1)
    assert 0.4 < share < 0.6
    sigma = np.asarray(many.sigma)
    u = sigma / (SHIFT - (SHIFT - 1) * sigma)
    low, high = LEVELS
    assert low <= u.min() < low + 0.02
    assert high - 0.02 < u.max() <= high + 1e-6
    # The batch covers the levels in every draw.
    assert (np.diff(np.sort(u, axis=1), axis=1) > 0).all()
    assert abs(np.corrcoef(many.start[:, 0, 0], many.noise[:, 0, 0])[0, 1]) < 0.2
