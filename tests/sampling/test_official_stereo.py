"""An official model reads warps and entries of a real memory, by its own VAE and frame layout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from pallas_kernels.soft_fill import SoftFill
from tests.models.official_modules import normal, our_params, random_tensors
from tests.models.small_model import random_params
from tests.toy_official import BANK, CLIP, HEIGHT, MODEL, VAE, WIDTH
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.interop.component_configs import clip_vision_config, vae_config
from worldstereo_jax.interop.memory_slots import attach_memory, read_widths
from worldstereo_jax.interop.wan_vae_names import wan_vae_table
from worldstereo_jax.memory.entry_completion import add_entries
from worldstereo_jax.memory.entry_tokens import entry_block_mask, select_entry_tokens
from worldstereo_jax.memory.masks import reference_block_mask
from worldstereo_jax.memory.warping import candidate_warp
from worldstereo_jax.models.wan_vae_clips import encode_clip, encode_frames
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling import unipc_schedule
from worldstereo_jax.sampling.official_clip import velocity_function
from worldstereo_jax.sampling.official_conditions import (
    ChosenViews,
    StereoRead,
    draw_renders,
    encode_conditions,
    read_stereo,
)
from worldstereo_jax.sampling.official_denoise import (
    denoise_official,
    official_inputs,
    reading_pattern,
    without_geometry,
)
from worldstereo_jax.sampling.official_world import MODEL_AXIS, OfficialChoices, OfficialWorld
from worldstereo_jax.sampling.reading import READING
from worldstereo_jax.sampling.token_reading import Pattern
from worldstereo_jax.sampling.world import Cameras, RolloutConfig, empty_memory, remember_frames

FRAMES = 5
INTRINSICS = jnp.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]])
# Two heads, so that they can be split, too.
PLAIN = MODEL.replace(num_heads=2, scan_layers=True)
READS = PLAIN.replace(**read_widths())
ON_SURFACE = READS.replace(reference_positions="surface")


def make_world(denoiser=READS, stride=1, **changes) -> OfficialWorld:
    control = dataclasses.replace(denoiser.control, mask_downsample=stride)
    choices = OfficialChoices(
        schedule=unipc_schedule(2), attention=changes.pop("attention", "correspondence")
    )
    return OfficialWorld(
        name="toy",
        rollout=RolloutConfig(
            frames=FRAMES, references=2, keyframes=2, warp_views=2, entry_tokens=24, **BANK
        ),
        choices=choices,
        denoiser=denoiser.replace(control=control),
        vae=vae_config(VAE),
        image_encoder=clip_vision_config(CLIP),
        **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cameras():
    path = make_path("right", FRAMES, amplitude=0.5)
    return Cameras(w2c=jnp.asarray(path), intrinsics=jnp.broadcast_to(INTRINSICS, (FRAMES, 3, 3)))


@pytest.fixture(scope="module")
def memory(cameras):
    """The first and the last view of a path along a wall, three metres off."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    shift = np.array([0.0, 6.0])[:, None, None]
    waves = [np.sin((x + shift) / 5), np.cos(y / 4 + 0 * shift), np.sin((x + shift) / 3 + y)]
    images = jnp.asarray(np.stack(waves, -1), jnp.float32)
    ends = jax.tree.map(lambda a: a[jnp.array([0, FRAMES - 1])], cameras)
    config = make_world().rollout
    depth = jax.device_put(np.full((2, HEIGHT, WIDTH), 3.0, np.float32))
    return remember_frames(config, empty_memory(config), images, depth, ends, 0)


@pytest.fixture(scope="module")
def vae_params():
    table = wan_vae_table(vae_config(VAE))
    return our_params(table, random_tensors(table))


# Only the first is attended to, so that entries of the second are left to say something.
FIRST = ChosenViews(
    index=jnp.zeros(2, jnp.int32), position=jnp.zeros(2, jnp.int32), valid=jnp.array([True, False])
)


@pytest.fixture(scope="module")
def renders(memory, cameras):
    """Of the points, for every world here: how a model reads them changes none."""
    draw = jax.jit(draw_renders, static_argnums=0)
    return draw(make_world(), memory, cameras, memory.stereo.images[0])


@jax.jit
def warped(memory, cameras, renders, plainly):
    """The pictures of a clip's warps; where not plainly, of one view alone, as `swapped_warps`."""
    reads = make_world(READS.replace(entry_width=0), reading=swapped_warps(plainly))
    return read_stereo(reads, memory, cameras, renders, FIRST).pictures


def swapped_warps(plainly, reading=READING):
    """Of a single view, to which entries add nothing; as ever where `plainly`, a traced bool."""

    def warp(*bank, **how):
        *bank, valid = bank
        return candidate_warp(*bank, valid & (plainly | (jnp.arange(len(valid)) == 0)), **how)

    def complete(fused, *rest):
        completed = add_entries(fused, *rest)
        return jax.tree.map(functools.partial(jnp.where, plainly), completed, fused)

    return reading._replace(warp=warp, complete_warp=complete)


@functools.partial(jax.jit, static_argnames="world")
def told_by(world, vae_params, memory, cameras, renders, pictures, plainly):
    """What a model is told, and the entries alone; where not plainly, of all views."""

    def select(bank, targets, attended, attended_valid, *, count):
        return select_entry_tokens(bank, targets, attended, attended_valid & plainly, count=count)

    alone = world.denoiser.replace(warped_width=0)
    reads = dataclasses.replace(
        world, denoiser=alone, reading=READING._replace(select_entries=select)
    )
    entries = read_stereo(reads, memory, cameras, renders, FIRST).entries
    read = StereoRead(pictures, entries)
    return encode_conditions(world, vae_params, memory.stereo, cameras, renders, FIRST, read), read


@pytest.fixture(scope="module")
def pictures(memory, cameras, renders):
    """Of a clip's warps, however often the frames are latents."""
    return warped(memory, cameras, renders, np.True_)


@pytest.fixture(scope="module")
def gathered(vae_params, memory, cameras, renders, pictures):
    """With places, which models of the official positions are not given."""
    given = vae_params, memory, cameras, renders, pictures, np.True_
    return told_by(make_world(ON_SURFACE), *given)


def encoded(encode, vae_params, pictures):
    """The candidates' pictures [f, h, w, k, 3] as latents [f, lh, lw, k, 16]."""
    clips = jnp.moveaxis(pictures, -2, 0)
    latents = jax.jit(lambda p, x: encode(p, x, vae_config(VAE)))(vae_params, clips)
    return jnp.moveaxis(latents, 0, -2)


@pytest.mark.row("S18")
@pytest.mark.row("S28")
def test_warps_are_latents_in_the_frame_layout_and_entries_are_of_other_views(
    gathered, vae_params, memory
):
    told, read = gathered
    latents = encoded(encode_frames, vae_params, read.pictures.images)
    np.testing.assert_allclose(told.warped.features[..., :16], latents, atol=1e-4)
    assert told.warped.features.shape == (FRAMES, HEIGHT // 8, WIDTH // 8, 2, 17)
    # The clip starts at a stored view, and ends at another: there the warp is that view.
    for frame, view in ((0, 0), (-1, 1)):
        picture, cover = read.pictures.images[frame, ..., 0, :], read.pictures.cover[frame, ..., 0]
        assert float(cover.mean()) > 0.95
        error = np.abs(np.asarray(picture - memory.stereo.images[view]))[np.asarray(cover) > 0]
        assert np.median(error) < 0.05
    assert int(told.entries.valid.sum()) > 3
    assert told.entries.features.shape == (24, 90)
    assert told.entries.target_place.shape == (FRAMES * 6, 3)
    assert told.entry_geometry.position.shape == (1, 24, 3)


@pytest.mark.slow
@pytest.mark.row("S18")
def test_a_clip_whose_frames_follow_each_other_is_warped_as_one(
    vae_params, memory, cameras, renders, pictures
):
    given = vae_params, memory, cameras, renders, pictures, np.True_
    told, read = told_by(make_world(stride=4), *given)
    assert told.warped.features.shape == (2, HEIGHT // 8, WIDTH // 8, 2, 17)
    latents = encoded(encode_clip, vae_params, read.pictures.images)
    np.testing.assert_allclose(told.warped.features[..., :16], latents, atol=1e-4)
    cover = np.asarray(read.pictures.cover).reshape(FRAMES, 4, 8, 6, 8, 2).mean((2, 4))
    np.testing.assert_allclose(told.warped.features[0, ..., 16], cover[0], atol=1e-5)
    np.testing.assert_allclose(told.warped.features[1, ..., 16], cover[1:].mean(0), atol=1e-5)
    # Entries are those that the frames of the latent see.
    assert told.entries.target_place.shape == (2 * 6, 3)


def test_what_shows_the_same_place_stands_at_the_same_position(gathered):
    """The path starts at the stored view and moves aside by less than a token; a slot is empty."""
    told = gathered[0]
    seen = np.asarray(told.reference_place).reshape(2, 2, 3, 3)
    wanted = np.asarray(told.target_place).reshape(FRAMES, 2, 3, 3)
    assert np.isfinite(seen).all()
    # In tokens; at its edges less is known of the path.
    np.testing.assert_allclose(seen[0], wanted[0], atol=0.25)
    moved = np.abs(wanted[-1] - seen[0])
    assert moved[..., 2].min() > 0.15
    assert moved.max() < 0.5
    for config in (READS, ON_SURFACE):
        batch = jax.tree.map(lambda leaf: leaf[None], told)
        x, times = X[:1], jnp.full(1, 500.0)
        _, given = official_inputs(
            config, x, times, batch, TEXT[:1], TOKENS[None], Pattern(None, None)
        )
        places = given["references"].place, given["references"].target_place
        if config == READS:
            assert places == (None, None)
        else:
            np.testing.assert_array_equal(places[0], batch.reference_place)
            np.testing.assert_array_equal(places[1], batch.target_place)


X = normal(1, 2, FRAMES, HEIGHT // 8, WIDTH // 8, 16)
TEXT, TOKENS = normal(2, 2, 4, 6), normal(3, 5, 10)


@jax.jit
def pattern_of(told):
    """Compiled by itself: all evaluations below share it."""
    return reading_pattern(jax.tree.map(lambda leaf: leaf[None], told))


def evaluate(config, params, told, pattern):
    told = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], 2, axis=0), without_geometry(told))
    tokens = jnp.repeat(TOKENS[None], 2, axis=0)
    times = jnp.full(2, 500.0)
    model = WorldStereo(config)
    return denoise_official(model, config, params, X, times, told, TEXT, tokens, pattern)


velocity = jax.jit(evaluate, static_argnames="config")


def through(world, params, told):
    """The same by what a world is made of."""
    function = velocity_function(world, params, told, TOKENS)
    return function(TEXT, X, jnp.float32(500), jnp.float32(0.5))


# Every operation rounded as itself: how those that are fused are rounded depends on what else is
# fused with them, so that two programs differ in bits that their operations do not.
velocity_unfused = jax.jit(
    evaluate, static_argnames="config", compiler_options={"xla_disable_hlo_passes": "fusion"}
)


def difference(a, b) -> float:
    return float(np.abs(np.asarray(a - b)).max())


@pytest.mark.row("S18")
@pytest.mark.row("S28")
@pytest.mark.parametrize(
    "attention", ["correspondence", pytest.param("dense", marks=pytest.mark.slow)]
)
def test_an_untrained_attachment_changes_no_bit(gathered, attention):
    told = gathered[0]
    if attention == "dense":
        told = dataclasses.replace(told, reference_geometry=None)
    params, pattern = random_params(PLAIN), pattern_of(told)
    assert (pattern.mask is None) == (attention == "dense")
    alone = dataclasses.replace(told, warped=None, entries=None)
    without = pattern._replace(entry_mask=None, entry_order=None)
    if attention == "dense":
        without = Pattern(None, None)
    before = velocity_unfused(PLAIN, params, alone, without)
    config, grown = attach_memory(PLAIN, params, jax.random.key(0), **read_widths())
    assert config == READS
    np.testing.assert_array_equal(velocity_unfused(config, grown, told, pattern), before)


@pytest.fixture(scope="module")
def one_device(gathered):
    """A function from what a trained model is told to its velocity; and the velocity."""
    params, pattern = random_params(READS), pattern_of(gathered[0])
    read = functools.partial(velocity, READS, params)
    return functools.partial(read, pattern=pattern), read(gathered[0], pattern)


@pytest.mark.row("S18")
@pytest.mark.row("S28")
def test_a_trained_one_reads_both(gathered, one_device):
    told, (read, expected) = gathered[0], one_device
    entries = told.entries
    other = dataclasses.replace(entries, features=entries.features + 1.0)
    assert difference(read(dataclasses.replace(told, entries=other)), expected) > 1e-4
    warped = dataclasses.replace(told.warped, features=told.warped.features + 1.0)
    assert difference(read(dataclasses.replace(told, warped=warped)), expected) > 1e-4
    # Of those that are not there nothing is read.
    noise = jnp.where(entries.valid[:, None], entries.features, 9.0)
    other = dataclasses.replace(entries, features=noise)
    np.testing.assert_array_equal(read(dataclasses.replace(told, entries=other)), expected)


@pytest.mark.slow
@pytest.mark.row("S28")
def test_split_over_devices_it_says_the_same(gathered, one_device):
    """Eight do not divide the heads: queries are dealt out, of entries too."""
    world = make_world(mesh=Mesh(np.array(jax.devices()), (MODEL_AXIS,)))

    found = jax.jit(through, static_argnums=0)(world, random_params(READS), gathered[0])
    np.testing.assert_allclose(found, one_device[1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.row("S15")
@pytest.mark.row("S28")
def test_functions_that_read_are_swapped_in_the_world(
    vae_params, memory, cameras, renders, pictures, gathered, one_device
):
    """Soft masks, entries of all views, warps of a single view; the model is the same."""
    told, read = gathered
    given = vae_params, memory, cameras, renders, pictures, np.False_
    assert int(told_by(make_world(ON_SURFACE), *given)[1].entries.valid.sum()) > int(
        read.entries.valid.sum()
    )
    single = warped(memory, cameras, renders, np.False_)
    assert np.asarray(single.cover).mean() < np.asarray(pictures.cover).mean() - 0.05
    soft = {"reference_mask": reference_block_mask, "entry_mask": entry_block_mask}
    reading = READING._replace(
        **{name: functools.partial(build, strength=2.0) for name, build in soft.items()}
    )
    clip = jax.tree.map(lambda a: a[None], told)
    pattern = jax.eval_shape(functools.partial(reading_pattern, reading=reading), clip)
    assert isinstance(pattern.mask.fill, SoftFill)
    assert isinstance(pattern.entry_mask.fill, SoftFill)
    world = make_world(reading=reading)
    found = jax.jit(through, static_argnums=0)(world, random_params(READS), told)
    assert difference(found, one_device[1]) > 1e-4


def test_warps_of_other_channels_are_refused():
    with pytest.raises(InputError, match="warped features of 9 channels, expected 17"):
        make_world(READS.replace(warped_width=9))
