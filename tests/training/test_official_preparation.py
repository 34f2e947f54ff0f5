"""Training clips are what a rollout would hand to the model, and survive the cache."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.official_modules import our_params, random_tensors
from tests.toy_official import BANK, CLIP, DEPTH, HEIGHT, MODEL, VAE, WIDTH
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.interop.component_configs import (
    clip_vision_config,
    depth_anything_config,
    vae_config,
)
from worldstereo_jax.interop.encoder_names import clip_vision_table, depth_anything_table
from worldstereo_jax.interop.wan_vae_names import wan_vae_table
from worldstereo_jax.models.wan_vae_clips import encode_clip, encode_frames
from worldstereo_jax.sampling import unipc_schedule
from worldstereo_jax.sampling.official_rollout import OfficialClip
from worldstereo_jax.sampling.official_world import (
    OfficialChoices,
    OfficialParams,
    OfficialWorld,
    Prompt,
)
from worldstereo_jax.sampling.world import Cameras, RolloutConfig
from worldstereo_jax.training.official_fields import from_fields, to_fields
from worldstereo_jax.training.official_preparation import (
    PosedFrames,
    Preparation,
    draw_views,
    make_preparation,
)

FRAMES = 5
TEXT = jnp.ones((4, 6))


def make_world(stride: int, **choices: typing.Any) -> OfficialWorld:
    control = dataclasses.replace(MODEL.control, mask_downsample=stride)
    return OfficialWorld(
        name="toy",
        rollout=RolloutConfig(
            frames=FRAMES, references=3, keyframes=2, **BANK
        ),
        choices=OfficialChoices(schedule=unipc_schedule(2), **choices),
        denoiser=MODEL.replace(control=control),
        vae=vae_config(VAE),
        image_encoder=clip_vision_config(CLIP),
        depth=depth_anything_config(DEPTH),
    )  # fmt: skip


@functools.cache
def preparation_of(stride: int, attention: str) -> Preparation:
    """One for all tests: it keeps what it compiled."""
    return make_preparation(make_world(stride, attention=attention))


def component(table) -> typing.Any:
    return our_params(table, random_tensors(table))


@pytest.fixture(scope="module")
def params() -> OfficialParams:
    return OfficialParams(
        denoiser=None,
        vae=component(wan_vae_table(vae_config(VAE))),
        image_encoder=component(clip_vision_table(clip_vision_config(CLIP))),
        depth=component(depth_anything_table(depth_anything_config(DEPTH))),
    )


def posed(amplitude: float, seed: int) -> PosedFrames:
    """Frames of a wall 3 m off whose texture depends on the seed."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    phase = np.arange(FRAMES)[:, None, None] + seed
    waves = [np.sin(x / 5 + phase), np.cos(y / 4 + phase), np.sin(x / 3 + y + phase)]
    k = jnp.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]])
    return PosedFrames(
        images=jnp.asarray(np.stack(np.broadcast_arrays(*waves), -1), jnp.float32),
        depth=jax.device_put(np.full((FRAMES, HEIGHT, WIDTH), 3.0, np.float32)),
        cameras=Cameras(
            w2c=jnp.asarray(make_path("right", FRAMES, amplitude=amplitude)),
            intrinsics=jnp.tile(k[None], (FRAMES, 1, 1)),
        ),
    )


VIDEO, EARLIER = posed(0.5, 0), posed(0.5, 1)


class Handed(Exception):
    """Carries what the sampler would have been given."""


@pytest.mark.slow
@pytest.mark.row("S13")
@pytest.mark.parametrize(("stride", "attention"), [(1, "correspondence"), (4, "dense")])
def test_a_training_clip_is_what_a_rollout_hands_to_the_model(params, stride, attention):
    """To the bit, for one memory built by a rollout's clip and by the preparation."""
    preparation = preparation_of(stride, attention)
    world = preparation.rollout.world
    first = jax.tree.map(lambda a: a[:1], VIDEO)
    begun = preparation.begin(params, first)
    chosen = keyframe_indices(FRAMES, world.rollout.keyframes)
    memory = preparation.remember(begun, jax.tree.map(lambda a: a[chosen], EARLIER))
    found = preparation.told(params, memory, VIDEO, TEXT)

    def hand_over(denoiser, conditions, prompt, image, key):
        raise Handed(conditions, image)

    rollout = dataclasses.replace(preparation.rollout, denoise=hand_over)
    nothing = jnp.zeros_like(EARLIER.depth)
    earlier = OfficialClip(EARLIER.images, EARLIER.depth, EARLIER.cameras, None, None, nothing)
    remembered = rollout.remember(begun, earlier)
    with pytest.raises(Handed) as handed:
        rollout.clip(
            params, remembered, VIDEO.cameras, Prompt(TEXT, TEXT), VIDEO.images[0],
            jax.random.key(0),
        )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, (found.conditions, found.image), handed.value.args)
    # Views and renders come from the earlier frames too, not from the first alone.
    alone = preparation.told(params, begun, VIDEO, TEXT).conditions
    assert np.abs(np.asarray(found.conditions.reference - alone.reference)).max() > 1e-3
    assert float(found.conditions.render_mask.mean()) < float(alone.render_mask.mean())

    encode = encode_frames if stride == 1 else encode_clip
    latent = jax.jit(lambda p, x: encode(p, x, world.vae))(params.vae, VIDEO.images[None])[0]
    np.testing.assert_allclose(found.target, latent, atol=1e-5)
    assert found.target.shape == world.latent_shape

    fields = to_fields(found, VIDEO.cameras)
    batch = {name: array[None] for name, array in fields.items()}
    restore = jax.jit(lambda f: from_fields(f, height=HEIGHT, width=WIDTH, ray_x_offset=-0.5))
    back = jax.tree.map(lambda a: np.asarray(a)[0], restore(batch))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        again = dict(jax.tree_util.tree_leaves_with_path(back))[path]
        assert again.dtype == leaf.dtype, path
        np.testing.assert_allclose(again, leaf, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(back.conditions.render_mask, found.conditions.render_mask)
    assert sum(a.nbytes for a in fields.values()) < 0.3 * sum(
        leaf.nbytes for leaf in jax.tree.leaves(found)
    )
    del batch["camera"]
    with pytest.raises(InputError, match="no field 'camera': build their cache again"):
        restore(batch)
    loud = dataclasses.replace(found, text=TEXT * 1e6)
    with pytest.raises(InputError, match="'text' holds a value"):
        to_fields(loud, VIDEO.cameras)


@pytest.mark.slow
def test_clips_are_seeded_and_missing_depth_is_estimated(params):
    preparation = preparation_of(1, "correspondence")
    blind = dataclasses.replace(EARLIER, depth=jnp.zeros_like(EARLIER.depth))
    memory = preparation.begin(params, jax.tree.map(lambda a: a[:1], VIDEO))
    chosen = jnp.array([0, 3])
    views = preparation.completed(params, memory, blind, chosen)
    np.testing.assert_array_equal(views.images, blind.images[chosen])
    # The path starts where the memory knows all: there its depth stands, beyond it the network's.
    np.testing.assert_allclose(views.depth[0], 3.0, atol=1e-3)
    assert (views.depth > 0).all()
    given = preparation.completed(params, memory, EARLIER, chosen)
    np.testing.assert_array_equal(given.depth, EARLIER.depth[chosen])

    sources = jax.tree.map(lambda a: a[1:3], EARLIER)
    nothing = jax.tree.map(lambda a: a[:0], EARLIER)
    clips = [
        preparation.clip(params, VIDEO, views, TEXT, jax.random.key(seed))
        for views, seed in ((sources, 0), (sources, 0), (sources, 5), (nothing, 0))
    ]
    jax.tree.map(np.testing.assert_array_equal, clips[0], clips[1])
    assert not np.array_equal(clips[0].conditions.reference, clips[2].conditions.reference)
    # Without references the first frame is the only view, as in the first clip of a scene.
    assert int(clips[3].conditions.reference_valid.sum()) == 1
    assert int(clips[0].conditions.reference_valid.sum()) > 1


def test_any_number_of_views_is_drawn_in_any_order():
    draws = [np.asarray(draw_views(jax.random.key(seed), 3)).tolist() for seed in range(60)]
    assert {len(draw) for draw in draws} == {1, 2, 3}
    assert all(len(set(draw)) == len(draw) and set(draw) <= {0, 1, 2} for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 10
    assert draw_views(jax.random.key(0), 0).shape == (0,)
