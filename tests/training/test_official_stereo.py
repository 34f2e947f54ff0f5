"""Modules for warps and entries train by themselves, over a model that stays as it is."""

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
from tests.training.test_official_objective import (
    LATENT,
    NULL,
    make_clip,
    stack,
    with_geometry,
)
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.interop.layer_stacks import flat_paths
from worldstereo_jax.interop.memory_slots import attach_memory, read_widths
from worldstereo_jax.memory.entry_tokens import entry_block_mask
from worldstereo_jax.memory.masks import reference_block_mask
from worldstereo_jax.models.worldstereo import MemoryEntries, WarpedMemory, WorldStereo
from worldstereo_jax.sampling.reading import READING
from worldstereo_jax.sampling.world import Cameras
from worldstereo_jax.training.official_fields import (
    check_recipe,
    clip_recipe,
    from_fields,
    to_fields,
)
from worldstereo_jax.training.official_objective import (
    TrainingClip,
    drop_inputs,
    in_compute_type,
    stage_parameters,
    velocity_error,
)
from worldstereo_jax.training.sharding import TrainLayout, parse_mesh
from worldstereo_jax.training.state import init_train_state, join, make_train_step, split

HEIGHT, WIDTH = 8 * LATENT[1], 8 * LATENT[2]
ENTRIES = 8
PLAIN = MODEL.replace(num_heads=2, scan_layers=True)
READS = PLAIN.replace(**read_widths())
ON_SURFACE = READS.replace(reference_positions="surface")


def stereo_clip(seed: int) -> TrainingClip:
    """A clip with walls, random warps, and entries where its views see these walls."""
    clip = with_geometry(make_clip(seed), seed)
    told = clip.conditions
    warped = WarpedMemory(
        features=normal(seed + 20, *LATENT, 2, 17),
        log_weight=jax.device_put(
            np.where(np.asarray(normal(seed + 21, *LATENT, 2)) > 0.5, -np.inf, np.float32(0.0))
        ),
    )
    geometry = jax.tree.map(lambda leaf: np.asarray(leaf)[:, :ENTRIES], told.reference_geometry)
    geometry = jax.device_put(geometry)
    entries = MemoryEntries(
        features=normal(seed + 22, ENTRIES, 90),
        place=normal(seed + 23, ENTRIES, 3),
        target_place=normal(seed + 24, told.target_geometry.position.shape[1], 3),
        valid=jax.device_put(np.arange(ENTRIES) != 2),
    )
    told = dataclasses.replace(
        told,
        warped=warped,
        entries=entries,
        entry_geometry=geometry,
        reference_place=normal(seed + 25, told.reference_geometry.position.shape[1], 3),
        target_place=entries.target_place,
    )
    return dataclasses.replace(clip, conditions=told)


@pytest.fixture(scope="module")
def clip() -> TrainingClip:
    return stereo_clip(0)


@pytest.mark.slow
@pytest.mark.row("S18")
@pytest.mark.row("S28")
def test_the_stage_stereo_trains_what_was_attached_and_nothing_else(clip):
    """From a model without: the loss falls, and all that was there stays to the bit."""
    old = random_params(PLAIN)
    config, params = attach_memory(PLAIN, old, jax.random.key(0), **read_widths())
    trained, rest = split(params, stage_parameters(params, "stereo"))
    assert flat_paths(rest).keys() == flat_paths(old).keys()
    model, batch = WorldStereo(config), stack(clip)
    noise, sigma = normal(3, 1, *LATENT, 16), jnp.array([0.7])

    def loss_fn(trained, given, key):
        frozen, batch = given
        params = in_compute_type(join(trained, frozen), "float32")
        return velocity_error(model, params, batch, sigma, noise).mean(), {}

    before = flat_paths(jax.device_get(trained))
    optimizer = optax.adamw(0.01)
    start = jax.jit(lambda trained, key: init_train_state(trained, optimizer, key))
    state = start(jax.device_get(trained), jax.random.key(0))
    # Some of it is bound to the device already, and what a step returns all is: one program.
    state = jax.device_put(state, jax.devices()[0])
    step, losses = make_train_step(loss_fn, optimizer), []
    for _ in range(25):
        state, metrics = step(state, (rest, batch))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0], losses
    for path, array in flat_paths(state.params).items():
        assert not np.array_equal(array, before[path]), path
    jax.tree.map(np.testing.assert_array_equal, rest, old)


def test_the_other_stages_train_it_with_the_rest():
    params = random_params(READS)
    slots = {p for p in flat_paths(params) if "warped_" in p or "entry_" in p}
    for stage, trains in (("keyframes", True), ("memory", True), ("camera", False)):
        chosen = flat_paths(stage_parameters(params, stage))
        assert {chosen[path] for path in slots} == {trains}
    only_entries = PLAIN.replace(entry_width=90)
    chosen = flat_paths(stage_parameters(random_params(only_entries), "stereo"))
    assert {path.split("/")[3] for path, keep in chosen.items() if keep} == {"entry_attention"}
    with pytest.raises(InputError, match="no parameters belong to a module 'warped_entry'"):
        stage_parameters(random_params(PLAIN), "stereo")


@pytest.mark.slow
@pytest.mark.row("S15")
@pytest.mark.row("S28")
def test_on_a_mesh_the_error_is_that_of_one_device():
    """Samples, heads and tokens split; under soft masks, whose strength is split with the rest.

    References stand on the surface: where that is is split, too.
    """
    reading = READING._replace(
        reference_mask=functools.partial(reference_block_mask, strength=2.0),
        entry_mask=functools.partial(entry_block_mask, strength=2.0),
    )
    batch = stack(*(stereo_clip(seed) for seed in (0, 1, 0, 1, 2, 3, 2, 3)))
    params = random_params(READS)
    sigma, noise = jnp.linspace(0.2, 0.9, 8), normal(6, 8, *LATENT, 16)

    def error(model, **changes):
        call = functools.partial(velocity_error, model, reading=reading, **changes)
        return jax.jit(call)

    alone = error(WorldStereo(ON_SURFACE))(params, batch, sigma, noise)
    layout = TrainLayout(parse_mesh("data=2,fsdp=2,model=2"))
    placed = jax.device_put(params, layout.parameters(params))
    found = error(layout.model(ON_SURFACE))(placed, *map(layout.batch, (batch, sigma, noise)))
    np.testing.assert_allclose(found, alone, rtol=1e-4)


def test_with_the_views_all_else_is_dropped_and_entries_alone_now_and_then(clip):
    many = 400
    batch = jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], many, axis=0), clip)
    found = jax.jit(
        lambda batch: (
            drop_inputs(
                batch, NULL, jax.random.key(1), drop_text=0.0, drop_references=0.3
            ).conditions
        )
    )(jax.device_put(batch))
    found = jax.device_get(found)
    alone = ~found.reference_valid.any(1)
    assert 0.2 < alone.mean() < 0.4
    warped = np.isfinite(found.warped.log_weight).any((1, 2, 3, 4))
    np.testing.assert_array_equal(warped, ~alone)
    entries = found.entries.valid.any(1)
    assert not (entries & alone).any()
    assert 0.05 < (~entries[~alone]).mean() < 0.2


def test_they_survive_the_cache_and_clips_without_them_are_refused(clip):
    k = np.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]], np.float32)
    path = make_path("right", LATENT[0], amplitude=0.5)
    cameras = jax.device_put(Cameras(w2c=path, intrinsics=np.tile(k[None], (LATENT[0], 1, 1))))
    batch = {name: array[None] for name, array in to_fields(clip, cameras).items()}
    sizes = {"height": HEIGHT, "width": WIDTH, "ray_x_offset": -0.5}
    back = jax.jit(lambda fields: from_fields(fields, **sizes))(batch)
    wanted, found = clip.conditions, jax.tree.map(lambda leaf: np.asarray(leaf)[0], back.conditions)
    places = ("reference_place", "target_place")
    for name in ("warped", "entries", "entry_geometry", *places):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3),
            getattr(found, name),
            getattr(wanted, name),
        )
    shared = {**sizes, "frames": LATENT[0]}
    for_both, for_none = clip_recipe(READS, **shared), clip_recipe(PLAIN, **shared)
    assert "warped_width" not in for_none
    check_recipe(for_both, READS, "clips")
    # What a model does not read may be there.
    check_recipe(for_both, PLAIN, "clips")
    with pytest.raises(InputError, match=r"lack what a model of warped_width 17 reads.*--stereo"):
        check_recipe(for_none, READS, "clips")
    with pytest.raises(InputError, match=r"lack the places .* --reference-positions surface"):
        check_recipe(for_both, ON_SURFACE, "clips")
    check_recipe(clip_recipe(ON_SURFACE, **shared), READS, "clips")
    with pytest.raises(InputError, match="a model of entry_width 90, this one has 99"):
        check_recipe(for_both, READS.replace(entry_width=99), "clips")
