"""The loss of the official models, and what trains in which stage."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.official_modules import normal
from tests.models.small_model import random_params
from tests.toy_official import MODEL
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.layer_stacks import flat_paths
from worldstereo_jax.memory.masks import ViewSet, token_geometries
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling.official_conditions import OfficialConditions
from worldstereo_jax.sampling.official_denoise import denoise_official, reading_pattern
from worldstereo_jax.training.official_objective import (
    TrainingClip,
    drop_inputs,
    in_compute_type,
    official_loss,
    stage_parameters,
    stratified_sigmas,
    velocity_error,
)
from worldstereo_jax.training.state import averaged, init_train_state, join, make_train_step, split

FRAMES, HEIGHT, WIDTH, VIEWS = 2, 32, 48, 2
LATENT = (FRAMES, HEIGHT // 8, WIDTH // 8)
NULL = normal(99, 3, 6)


def make_clip(seed: int) -> TrainingClip:
    """One clip with random conditions, without a batch axis."""
    shapes = {
        "condition": (*LATENT, 20), "render_latent": (*LATENT, 16),
        "plucker": (FRAMES, HEIGHT, WIDTH, 6), "camera": (FRAMES, 7),
        "reference": (VIEWS, *LATENT[1:], 36), "reference_camera": (VIEWS, 7),
    }  # fmt: skip
    arrays = {name: normal(10 * seed + i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    conditions = OfficialConditions(
        **arrays,
        render_mask=jax.device_put(np.float32(np.asarray(normal(seed, FRAMES, HEIGHT, WIDTH)) > 0)),
        reference_index=jax.device_put(np.array([0, 1], np.int32)),
        reference_valid=jax.device_put(np.array([True, seed % 2 == 0])),
        target_geometry=None,
        reference_geometry=None,
    )
    return TrainingClip(
        conditions=conditions,
        text=normal(seed + 7, 3, 6),
        image=normal(seed + 8, 5, 10),
        target=normal(seed + 9, *LATENT, 16),
    )


geometries = jax.jit(token_geometries)


def with_geometry(clip: TrainingClip, seed: int) -> TrainingClip:
    """Walls at other distances for every seed, seen from other places."""

    def views(count: int, shift: float) -> ViewSet:
        w2c = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
        w2c[:, 0, 3] = shift * np.arange(count)
        k = np.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]], np.float32)
        depth = np.full((count, HEIGHT, WIDTH), 2.0 + 0.7 * seed, np.float32)
        depth[:, :, WIDTH // 2 :] += 1.0
        views = ViewSet(depth, w2c, np.tile(k[None], (count, 1, 1)), np.ones(count, bool))
        return jax.device_put(views)

    wanted, seen = geometries(views(FRAMES, 0.3), views(VIEWS, 0.5 + seed))
    conditions = dataclasses.replace(
        clip.conditions, target_geometry=wanted, reference_geometry=seen
    )
    return dataclasses.replace(clip, conditions=conditions)


def stack(*clips: TrainingClip) -> TrainingClip:
    return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *clips))


@pytest.fixture(scope="module")
def batch() -> TrainingClip:
    return stack(make_clip(0), make_clip(1))


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


@functools.cache
def jitted(function):
    return jax.jit(functools.partial(function, WorldStereo(MODEL)))


def error_of(params, clip, sigma, noise) -> np.ndarray:
    return np.asarray(jitted(velocity_error)(params, clip, jnp.asarray(sigma), noise))


def call(model, params, clip, x, timestep):
    conditions, text, image = clip.conditions, clip.text, clip.image
    pattern = reading_pattern(conditions)
    return denoise_official(
        model, model.config, params, x, timestep, conditions, text, image, pattern
    )


def test_the_error_is_that_of_the_velocity_at_the_noise_level(params, batch):
    """Recomputed in numpy from one call of the model on x = (1 - s) x0 + s noise, time 1000 s."""
    sigma, noise = np.array([0.3, 0.8], np.float32), normal(5, 2, *LATENT, 16)
    s = sigma[:, None, None, None, None]
    x0 = np.asarray(batch.target)
    x = jnp.asarray((1 - s) * x0 + s * np.asarray(noise))
    output = np.asarray(jitted(call)(params, batch, x, jnp.asarray(1000 * sigma)))
    expected = ((output - (np.asarray(noise) - x0)) ** 2).mean((1, 2, 3, 4))
    np.testing.assert_allclose(error_of(params, batch, sigma, noise), expected, rtol=1e-4)


def test_a_batch_is_its_clips_one_by_one(params, batch):
    sigma, noise = np.array([0.4, 0.9], np.float32), normal(6, 2, *LATENT, 16)
    together = error_of(params, batch, sigma, noise)
    assert abs(together[0] - together[1]) > 1e-3
    for number in range(2):
        part = jax.tree.map(lambda a, n=number: np.asarray(a)[n : n + 1], (batch, sigma, noise))
        np.testing.assert_allclose(error_of(params, *part), together[number], rtol=1e-4)


@pytest.mark.row("S17")
def test_each_clip_of_a_batch_has_a_correspondence_pattern_of_its_own(params):
    """Mask and token order differ; the batch gives what each clip gives beside its like."""
    clips = [with_geometry(make_clip(0), 0), with_geometry(make_clip(0), 3)]
    batch, noise = stack(*clips), np.tile(normal(6, 1, *LATENT, 16), (2, 1, 1, 1, 1))
    sigma = np.array([0.5, 0.5], np.float32)
    together = error_of(params, batch, sigma, noise)
    # All but the geometry is the same in both.
    assert abs(together[0] - together[1]) > 1e-4
    for number in range(2):
        found = error_of(params, stack(clips[number], clips[number]), sigma, noise)
        np.testing.assert_allclose(found, together[number], rtol=1e-4)


def test_references_that_are_not_there_change_nothing(params, batch):
    sigma, noise = np.array([0.4, 0.9], np.float32), normal(6, 2, *LATENT, 16)
    conditions = dataclasses.replace(batch.conditions, reference_valid=jnp.zeros((2, VIEWS), bool))
    without = dataclasses.replace(batch, conditions=conditions)
    other = dataclasses.replace(conditions, reference=conditions.reference + 1)
    alone = error_of(params, without, sigma, noise)
    np.testing.assert_allclose(
        error_of(params, dataclasses.replace(batch, conditions=other), sigma, noise),
        alone,
        rtol=1e-5,
    )
    assert np.abs(error_of(params, batch, sigma, noise) - alone).max() > 1e-4
    # Dropped from a clip that has none, they are still none.
    drop = jax.jit(functools.partial(drop_inputs, drop_references=1.0))
    dropped = drop(without, NULL, jax.random.key(0))
    assert not dropped.conditions.reference_valid.any()


def test_text_and_references_are_dropped_as_often_as_stated():
    many = 4000
    clip = jax.tree.map(lambda a: np.zeros((many, *a.shape[:1]), a.dtype), make_clip(0).conditions)
    conditions = dataclasses.replace(clip, reference_valid=np.ones((many, VIEWS), bool))
    numbers = (np.zeros(shape, np.float32) for shape in ((many, 3, 6), (many, 1)))
    text, target = jax.device_put(tuple(numbers))
    whole = TrainingClip(jax.device_put(conditions), text, None, target)
    drop = functools.partial(drop_inputs, drop_text=0.2, drop_references=0.3)
    found = jax.device_get(jax.jit(drop)(whole, NULL, jax.random.key(1)))
    silent = (found.text == np.asarray(NULL)[None]).all((1, 2))
    alone = ~found.conditions.reference_valid.any(1)
    assert abs(silent.mean() - 0.2) < 0.03
    assert abs(alone.mean() - 0.3) < 0.03
    # Each on its own, and whole clips at a time.
    assert abs((silent & alone).mean() - 0.06) < 0.02
    np.testing.assert_array_equal(found.text[~silent], 0)
    assert found.conditions.reference_valid[~alone].all()


def test_noise_levels_lie_one_to_a_stratum():
    for seed in range(5):
        sigma = np.asarray(stratified_sigmas(jax.random.key(seed), 8, 3.0))
        # Undo the shift.
        u = sigma / (3 - 2 * sigma)
        np.testing.assert_array_equal(np.floor(8 * u), np.arange(8))


def test_thirds_of_the_noise_levels_add_up_to_the_loss(params, batch):
    loss, metrics = jitted(official_loss)(params, batch, NULL, jax.random.key(4))
    thirds = ("low", "middle", "high")
    np.testing.assert_allclose(sum(metrics[f"error_{t}"] for t in thirds), loss, rtol=1e-5)
    np.testing.assert_allclose(sum(metrics[f"share_{t}"] for t in thirds), 1.0)
    again, _ = jitted(official_loss)(params, batch, NULL, jax.random.key(5))
    assert float(again) != float(loss)


OFFICIAL_PARTS = {
    "camera": {"control", "residual"},
    "keyframes": {
        "patch_embedding", "camera_embedding", "time_embedding", "text_embedding",
        "image_embedding", "control", "residual", "head", "modulation", "self_attention",
        "cross_norm",
    },
}  # fmt: skip
OFFICIAL_PARTS["memory"] = OFFICIAL_PARTS["keyframes"] | {"ffn"}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("stage", OFFICIAL_PARTS)
def test_a_stage_trains_its_parts_and_nothing_else(stage, scan):
    """Of the real tree: a part is the top of it, or what a layer and its backbone consist of."""
    params = random_params(MODEL.replace(num_layers=2, scan_layers=scan))
    chosen = flat_paths(stage_parameters(params, stage))
    assert set(chosen) == set(flat_paths(params))

    def part(path: str) -> str:
        names = [n for n in path.split("/") if n not in ("controlled", "blocks", "layers")]
        names = [n for n in names if n != "backbone" and not n.startswith("layer_")]
        return names[0]

    trained = {part(path) for path, keep in chosen.items() if keep}
    kept = {part(path) for path, keep in chosen.items() if not keep}
    assert trained == OFFICIAL_PARTS[stage]
    assert not trained & kept
    assert trained | kept == OFFICIAL_PARTS["memory"] | {"cross_attention"}
    # The control branch has a feed-forward part of its own, which is not the backbone's.
    assert all(keep for path, keep in chosen.items() if "control/ffn" in path)


def test_a_stage_without_its_parts_and_an_unknown_one_are_named():
    plain = random_params(MODEL.replace(control=None, camera_width=None))
    with pytest.raises(InputError, match="no parameters belong to a module 'control'"):
        stage_parameters(plain, "camera")
    with pytest.raises(InputError, match=r"unknown stage 'memories'.*did you mean 'memory'"):
        stage_parameters(plain, "memories")


@pytest.mark.slow
def test_a_clip_is_overfitted_and_frozen_parts_stay_to_the_bit(params):
    """Some steps of the memory stage on one clip at fixed noise: the loss falls by half."""
    trained, rest = split(params, stage_parameters(params, "memory"))
    frozen = in_compute_type(rest, "bfloat16")
    optimizer = optax.adamw(0.02, weight_decay=0.1)
    clip = stack(make_clip(0))
    noise, sigma = normal(3, 1, *LATENT, 16), jnp.array([0.7])

    def loss_fn(trained, given, key):
        frozen, batch = given
        params = in_compute_type(join(trained, frozen), "float32")
        return velocity_error(WorldStereo(MODEL), params, batch, sigma, noise).mean(), {}

    before, kept = flat_paths(jax.device_get(trained)), flat_paths(jax.device_get(frozen))
    start = jax.jit(lambda trained, key: init_train_state(trained, optimizer, key))
    state = start(jax.device_get(trained), jax.random.key(0))
    step = make_train_step(loss_fn, optimizer)
    losses = []
    for _ in range(30):
        state, metrics = step(state, (frozen, clip))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0], losses
    after, mean = flat_paths(state.params), flat_paths(averaged(state))
    assert after.keys() == mean.keys() == before.keys()
    for path, array in before.items():
        assert not np.array_equal(after[path], array), path
        assert not np.array_equal(mean[path], array), path
    for path, array in flat_paths(frozen).items():
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array, kept[path], err_msg=path)


def test_parameters_compute_in_another_type_and_learn_in_their_own():
    params = {"kernel": jnp.ones((2, 3)), "count": jnp.ones(2, jnp.int32)}
    cast = in_compute_type(params, "bfloat16")
    assert cast["kernel"].dtype == jnp.bfloat16
    assert cast["count"].dtype == jnp.int32

    def total(kernel):
        return in_compute_type({"kernel": kernel}, "bfloat16")["kernel"].sum().astype(jnp.float32)

    assert jax.grad(total)(params["kernel"]).dtype == jnp.float32
