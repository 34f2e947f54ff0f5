"""What the memories tell the model: the truth where they know it, nothing when removed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.geometry.splat import Render
from worldstereo_jax.memory.warping import Warped
from worldstereo_jax.models.vae_tiny import encode_frames
from worldstereo_jax.sampling.conditions import (
    anchor,
    example_conditions,
    without_entries,
    without_global,
    without_stereo,
)
from worldstereo_jax.sampling.warp_reading import UNSEEN_LOG_WEIGHT, where_points_speak


@pytest.fixture(scope="module")
def revisiting(gather, grown, revisit):
    """Of a bank that holds one view more than is attended to."""
    return gather(grown, revisit)[0], grown


def batched(tree):
    return jax.tree.map(lambda leaf: leaf[None], tree)


def test_the_first_frame_is_the_stored_view_at_its_camera(gathered, world, params, scene):
    conditions, guidance = gathered
    np.testing.assert_array_equal(guidance.render_image[0], scene["image"][0])
    assert not np.asarray(guidance.render_mask[0]).any()
    encode = jax.jit(encode_frames, static_argnums=0)
    latent = np.asarray(encode(world.vae, params.vae, scene["image"][None, :1]))[0, 0]
    np.testing.assert_allclose(conditions.first_latent, latent, atol=1e-5)


@pytest.mark.row("S18")
def test_warps_show_the_true_frames_where_they_are_covered(gathered, scene):
    _, guidance = gathered
    covered = np.asarray(guidance.warped_mask) < 0.5
    error = np.abs(np.asarray(guidance.warped_image) - np.asarray(scene["image"])).mean(-1)
    assert covered[1:].mean() > 0.3
    assert np.median(error[covered]) < 0.03
    assert error[covered].mean() < 0.5 * error[~covered].mean()
    depth = np.asarray(guidance.depth)
    relative = np.abs(depth - np.asarray(scene["depth"])) / np.asarray(scene["depth"])
    assert np.median(relative[covered]) < 0.01


@pytest.mark.row("S26")
def test_points_and_views_agree_on_what_is_seen(gathered):
    _, guidance = gathered
    by_views = np.asarray(guidance.warped_mask) < 0.5
    by_points = np.asarray(guidance.render_mask) < 0.5
    assert (by_views & by_points).sum() > 0.8 * by_views.sum()


@pytest.mark.row("S34")
def test_points_speak_where_no_view_does_but_not_between_nearer_surfaces():
    wall, behind, none = (np.full((1, 12, 16), x, np.float32) for x in (1.0, 4.0, 0.0))
    hole, nothing = none.copy(), np.zeros((1, 12, 16, 3), np.float32)
    hole[0, 3, 4] = hole[:, :, 11:] = 1.0
    seen = (nothing, hole, np.where(hole > 0, none, wall), 1.0 - hole, 1.0 - hole)
    warped = Warped(*map(jnp.asarray, seen))
    render = Render(*map(jnp.asarray, (nothing, none + 1.0, none, behind)))
    speak = jax.jit(where_points_speak)
    depth, by_points = speak(warped, render)
    wanted, said = np.where(hole > 0, behind, wall), hole > 0
    wanted[0, 3, 4], said[0, 3, 4] = 0.0, False
    np.testing.assert_array_equal(by_points, said)
    np.testing.assert_array_equal(depth, wanted)
    # Points of the surface itself close it.
    depth, by_points = speak(warped, dataclasses.replace(render, depth=jnp.asarray(wall)))
    np.testing.assert_array_equal(by_points, hole > 0)
    np.testing.assert_array_equal(depth, wall)


@pytest.mark.row("S26")
def test_thinly_covered_points_lend_the_anchor_their_own_colour(gathered):
    _, guidance = gathered
    points_alone = np.asarray((guidance.warped_mask > 0.5) & (guidance.render_mask < 0.5))
    faded = np.abs(np.asarray(guidance.render_image)).mean(-1)[points_alone]
    shown = np.abs(np.asarray(guidance.warped_image)).mean(-1)[points_alone]
    assert points_alone.sum() > 50
    # Fading only takes colour away, and from thin cover it takes a lot.
    assert (shown >= faded - 1e-4).all()
    assert (shown > 1.5 * faded + 0.01).any()


def test_only_found_views_are_references(gathered):
    conditions, _ = gathered
    np.testing.assert_array_equal(conditions.reference_valid, [True, False])
    reference_tokens = conditions.reference_geometry.valid.reshape(2, -1)
    assert reference_tokens[0].any()
    assert not reference_tokens[1].any()


@pytest.mark.row("S17")
def test_the_fused_candidate_always_exists_and_single_views_only_where_they_show(gathered):
    conditions, _ = gathered
    log_weight = np.asarray(conditions.warped_log_weight)
    cover = np.asarray(conditions.warped_features[..., 16])
    assert (log_weight[..., 0] >= UNSEEN_LOG_WEIGHT - 1e-5).all()
    np.testing.assert_array_equal(np.isfinite(log_weight[..., 1]), cover[..., 1] > 0.5)
    assert np.isneginf(log_weight[..., 1]).any()


def test_the_anchor_follows_the_memories_that_are_enabled(gathered):
    conditions = batched(gathered[0])
    np.testing.assert_array_equal(anchor(conditions), conditions.warped_features[..., 0, :16])
    rendered = without_stereo(conditions)
    np.testing.assert_array_equal(anchor(rendered), conditions.render_latent)
    still = anchor(without_global(rendered))
    first = np.asarray(conditions.first_latent)[:, None]
    np.testing.assert_array_equal(still, np.broadcast_to(first, still.shape))


def test_the_example_has_the_shapes_of_the_real_thing(gathered, world):
    example = example_conditions(world)
    real = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), gathered[0])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), example) == real


@pytest.mark.row("S28")
def test_entries_of_views_that_are_not_attended_become_tokens(gathered, revisiting, world):
    # The only view there is is attended to: nothing is left for entries to say.
    assert not gathered[0].entries.valid.any()
    conditions, memory = revisiting
    entries = conditions.entries
    assert entries.valid.shape == (world.rollout.entry_tokens,)
    assert int(entries.valid.sum()) > 10
    assert int(memory.stereo.valid.sum()) > int(conditions.reference_valid.sum())
    # Each lies on a surface that the path is known to show.
    place = np.asarray(entries.geometry.position)[np.asarray(entries.valid)]
    known = np.asarray(conditions.target_geometry.position)[
        np.asarray(conditions.target_geometry.valid)
    ]
    nearest = np.linalg.norm(place[:, None] - known[None], axis=-1).min(-1)
    token = 16 * np.linalg.norm(place, axis=-1) / float(conditions.intrinsics[0, 0, 0])
    assert np.median(nearest / token) < 0.7


@pytest.mark.row("S17")
@pytest.mark.row("S28")
def test_a_removed_memory_is_not_read(denoised, revisiting):
    """With a memory off, what it says must not reach the output by any way."""
    conditions, _ = revisiting
    shape = (1, *conditions.render_latent.shape)
    noisy = 0.5 * np.random.default_rng(5).standard_normal(shape, np.float32)

    def output(conditions):
        return denoised(noisy, jnp.array([400.0]), batched(conditions))

    stereo = ("reference_latent", "warped_features")
    shifted = {name: getattr(conditions, name) + 1.0 for name in stereo}
    other_views = dataclasses.replace(conditions, **shifted)
    assert np.abs(output(conditions) - output(other_views)).max() > 1e-4
    np.testing.assert_allclose(
        output(without_stereo(conditions)), output(without_stereo(other_views)), atol=1e-5
    )
    entries = conditions.entries
    said = dataclasses.replace(entries, features=entries.features + 1.0)
    other_entries = dataclasses.replace(conditions, entries=said)
    assert np.abs(output(conditions) - output(other_entries)).max() > 1e-4
    for off in (without_entries, without_stereo):
        np.testing.assert_allclose(output(off(conditions)), output(off(other_entries)), atol=1e-5)
    assert np.abs(output(conditions) - output(without_entries(conditions))).max() > 1e-4
    other_points = dataclasses.replace(conditions, render_latent=conditions.render_latent + 1.0)
    assert np.abs(output(conditions) - output(other_points)).max() > 1e-4
    np.testing.assert_allclose(
        output(without_global(conditions)), output(without_global(other_points)), atol=1e-5
    )
