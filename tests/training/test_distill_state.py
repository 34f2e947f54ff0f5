"""The distillation's step: it converges, keeps what is shared, goes on, and runs on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training import distill_toy as toy
from worldstereo_jax.evaluation.sample_distance import energy_coefficient
from worldstereo_jax.sampling.loop import make_sampler
from worldstereo_jax.sampling.schedules import dmd_schedule
from worldstereo_jax.sampling.solvers import dmd
from worldstereo_jax.training.batches import SeededBatches, part_of
from worldstereo_jax.training.distill import rollout
from worldstereo_jax.training.distill_state import (
    Optimizers,
    init_distill_state,
    make_distill_step,
)
from worldstereo_jax.training.loop import train
from worldstereo_jax.training.sharding import TrainLayout, parse_mesh
from worldstereo_jax.training.state import join

SAMPLES, FAKE_UPDATES = 8, 3


def new_step(**changes):
    return make_distill_step(
        toy.NETWORKS, toy.OPTIMIZERS, toy.read, fake_updates=FAKE_UPDATES, **changes
    )


@pytest.fixture(scope="module")
def step():
    return new_step()


def batches(seed=0):
    shape = ((FAKE_UPDATES + 1) * SAMPLES, 16)
    return SeededBatches(lambda rng: rng.normal(size=shape).astype("float32"), seed)


def sampled(student, schedule):
    noise = jax.random.normal(jax.random.key(9), (400, 100))
    sampler = make_sampler(
        lambda params, x, t, sigma: toy.affine_velocity(params, None, x, jnp.full(len(x), t)),
        schedule,
        dmd,
    )
    return np.asarray(sampler(join(toy.TEACHER, student), noise))


def test_the_student_comes_to_make_what_the_teacher_makes():
    """In one step, from another mean and deviation; the fake score ends where the student does.

    Of a student of several steps, a fake score this simple sees no more than the two moments of
    what they all make together.
    """
    schedule = dmd_schedule(1)
    networks = dataclasses.replace(toy.NETWORKS, schedule=schedule)
    step = make_distill_step(networks, toy.OPTIMIZERS, toy.read, fake_updates=FAKE_UPDATES)
    state, given = toy.new_state(), batches()
    before = sampled(state.student, schedule)
    assert abs(before.mean() - toy.MEAN) > 1
    gaps = []
    for _ in range(600):
        state, metrics = step(state, toy.TEACHER, next(given))
        gaps.append(float(metrics["gap"]))
    after = sampled(state.ema, schedule)
    np.testing.assert_allclose(after.mean(), toy.MEAN, atol=0.05)
    np.testing.assert_allclose(after.std(), toy.DEVIATION, rtol=0.1)
    np.testing.assert_allclose(state.fake["score"]["mean"], toy.MEAN, atol=0.1)
    assert np.mean(gaps[-50:]) < 0.1 * np.mean(gaps[10:60])


def test_four_steps_come_to_make_numbers_of_two_kinds():
    """Where the teacher's own network, sampled in these steps, stops between the kinds."""
    start = toy.network_params()
    optimizers = Optimizers(optax.adam(1e-3, b1=0.0), optax.adam(1e-3, b1=0.0))
    step = make_distill_step(toy.TWO_KINDS, optimizers, toy.read, fake_updates=FAKE_UPDATES)
    state = init_distill_state(start, optimizers, jax.random.key(1))
    rng = np.random.default_rng(1)

    def amplitudes(count):
        return rng.uniform(0.4, 1.2, (count, 1)).astype("float32")

    told = jnp.asarray(amplitudes(150))
    noise = jax.random.normal(jax.random.key(5), (150, 16))
    truth = toy.two_kinds(jax.random.key(6), told, 16)

    def distance(params):
        _, made = rollout(toy.TWO_KINDS, params, told, noise, jnp.array(4))
        pair = (np.asarray(x / told).reshape(-1, 1, 1) for x in (made, truth))
        return energy_coefficient(*pair)

    before = distance(start)
    for _ in range(150):
        state, _ = step(state, start, amplitudes(64 * (FAKE_UPDATES + 1)))
    after = distance(state.ema)
    assert before > 0.1
    assert after < 0.25 * before, (before, after)


def test_student_and_fake_score_start_as_copies_of_what_trains():
    state = toy.new_state()
    assert set(state.student) == {"score", "steps"}
    both = (state.student["score"]["mean"], state.fake["score"]["mean"], state.ema["score"]["mean"])
    assert len({x.unsafe_buffer_pointer() for x in (*both, toy.TEACHER["score"]["mean"])}) == 4
    whole = join(toy.TEACHER, state.student)
    assert whole["shared"]["one"] is toy.TEACHER["shared"]["one"]
    assert jax.tree.structure(whole) == jax.tree.structure(toy.TEACHER)


def test_what_is_computed_is_in_the_types_of_the_teacher():
    """Trained in float32, computed in the teacher's type; what is shared is the teacher's own."""
    seen = []

    def student(params, conditions, x, timestep):
        seen.append(jax.tree.map(lambda leaf: leaf.dtype.name, params))
        return toy.affine_velocity(params, conditions, x, timestep).astype(jnp.float32)

    networks = dataclasses.replace(toy.NETWORKS, student=student)
    teacher = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.TEACHER)
    step = make_distill_step(networks, toy.OPTIMIZERS, toy.read, fake_updates=FAKE_UPDATES)
    state, _ = jax.eval_shape(step, toy.new_state(), teacher, next(batches()))
    assert set(jax.tree.leaves(seen)) == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves((state.student, state.fake))} == {"float32"}


def test_the_fake_score_is_updated_so_often_and_the_student_once():
    def update(grads, state, params=None):
        return grads, state + 1

    counting = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
    optimizers = Optimizers(counting, counting)
    step = make_distill_step(toy.NETWORKS, optimizers, toy.read, fake_updates=5)
    batch = jnp.zeros((6 * SAMPLES, 16))
    state, _ = step(toy.new_state(optimizers=optimizers), toy.TEACHER, batch)
    assert (int(state.fake_opt), int(state.student_opt), int(state.step)) == (5, 1, 1)


def test_every_step_draws_anew(step):
    """As another run does: all that differs here is what is drawn."""
    given = next(batches())
    states = [
        toy.new_state(seed).replace(step=jnp.array(number, jnp.int32))
        for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    first, again, *others = [step(state, toy.TEACHER, given)[1] for state in states]
    assert first == again
    for other in others:
        assert first["fake_loss"] != other["fake_loss"]
        assert first["gap"] != other["gap"]


def test_every_update_reads_samples_of_its_own():
    batch = {"x": jnp.arange(12).reshape(6, 2)}
    parts = [np.asarray(part_of(batch, jnp.asarray(i), 3)["x"]) for i in range(3)]
    np.testing.assert_array_equal(parts[0], [[0, 1], [6, 7]])
    together = np.sort(np.concatenate(parts).ravel())
    np.testing.assert_array_equal(together, np.arange(12))


class _Killed(Exception):
    pass


def test_a_killed_and_resumed_run_is_bitwise_equal(step, tmp_path):
    """Of all that the state holds; the teacher is no part of a checkpoint."""

    def run(out, given, **kwargs):
        return train(
            toy.new_state(),
            lambda state, batch: step(state, toy.TEACHER, batch),
            given,
            steps=6,
            out=tmp_path / out,
            save_every=2,
            log_every=1,
            **kwargs,
        )

    class Dies(SeededBatches):
        def __next__(self):
            if self.get_state()["position"] == 5:
                raise _Killed
            return super().__next__()

    whole = run("whole", batches())
    dying = batches()
    dying.__class__ = Dies
    with pytest.raises(_Killed):
        run("cut", dying)
    resumed = run("cut", batches(), resume=True)
    words = [x.replace(key=jax.random.key_data(x.key)) for x in (whole, resumed)]
    for a, b in zip(*map(jax.tree.leaves, words), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(resumed.step) == 6


def test_two_steps_on_a_mesh_are_two_on_one_device():
    """Samples, parameters and moments split over eight devices; a matrix large enough to split."""
    layout = TrainLayout(parse_mesh("data=2,fsdp=2,model=2"), smallest=1)
    width = 16

    def velocity(params, conditions, x, timestep):
        hidden = jnp.tanh(x @ params["mlp"]["up"]["kernel"] + timestep[:, None] / 1000)
        return params["shared"]["one"] * (hidden @ params["mlp"]["down"]["kernel"] + conditions)

    networks = dataclasses.replace(toy.NETWORKS, student=velocity, fake=velocity, teacher=velocity)
    rng = np.random.default_rng(0)
    kernels = (rng.normal(size=(2, width, width)) / 4).astype("float32")
    mlp = {"up": {"kernel": kernels[0]}, "down": {"kernel": kernels[1]}}
    teacher = jax.tree.map(jnp.asarray, {"mlp": mlp, "shared": {"one": np.float32(1.1)}})
    trained = {"mlp": teacher["mlp"]}

    def run(given, placed, state, step):
        for _ in range(2):
            state, metrics = step(state, placed, given(next(source)))
        return state, metrics

    def make(params, key):
        return init_distill_state(params, toy.OPTIMIZERS, key)

    # Where they lie already: what the state gives up must not be the teacher's.
    placed = jax.tree.map(jax.device_put, teacher, layout.parameters(teacher))
    state = layout.init(make, {"mlp": placed["mlp"]}, jax.random.key(1))
    source = batches()
    alone = make_distill_step(networks, toy.OPTIMIZERS, toy.read, fake_updates=FAKE_UPDATES)
    wanted, expected = run(jnp.asarray, teacher, make(trained, jax.random.key(1)), alone)

    source = batches()
    places = layout.kept(state, state.student)
    lie = jax.tree.map(lambda x: x.sharding, state)
    split = [x for x in jax.tree.leaves(state) if x.shape == (width, width)]
    # Student, average, fake score and two moments of either optimiser, of two matrices.
    assert len(split) == 2 * (3 + 4)
    assert all(x.addressable_shards[0].data.size == width * width // 4 for x in split)
    on_mesh = make_distill_step(
        networks, toy.OPTIMIZERS, toy.read, fake_updates=FAKE_UPDATES, places=places
    )
    found, metrics = run(layout.batch, placed, state, on_mesh)
    assert jax.tree.map(lambda x: x.sharding, found) == lie
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-4)
    for a, b in zip(*(jax.tree.leaves((x.student, x.fake)) for x in (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)
