"""What an official model is told: views as officially chosen, latents, rays, cameras."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.models.official_modules import normal, our_params, random_tensors
from tests.models.small_model import random_params
from tests.toy_official import CLIP, DINOV2, MODEL, VAE
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.points import depth_to_points
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.interop.component_configs import (
    clip_vision_config,
    dinov2_config,
    vae_config,
)
from worldstereo_jax.interop.encoder_names import clip_vision_table, dinov2_table
from worldstereo_jax.interop.wan_vae_names import wan_vae_table
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.global_geometric import init_global_memory, insert_points
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory, insert_keyframes
from worldstereo_jax.models.dinov2 import retrieval_features
from worldstereo_jax.models.wan_vae_clips import encode_clip, encode_frames
from worldstereo_jax.models.wan_vae_tiles import encode_tiled
from worldstereo_jax.sampling import unipc_schedule
from worldstereo_jax.sampling.official_clip import decode_latent, image_tokens, velocity_function
from worldstereo_jax.sampling.official_conditions import (
    ChosenViews,
    choose_views,
    draw_renders,
    encode_conditions,
    encode_images,
    encode_video,
)
from worldstereo_jax.sampling.official_world import (
    MODEL_AXIS,
    OfficialChoices,
    OfficialWorld,
    Quirks,
)
from worldstereo_jax.sampling.world import Cameras, RolloutConfig, WorldMemory

HEIGHT, WIDTH, FRAMES = 32, 48, 3
INTRINSICS = jnp.array([[40.0, 0, 24], [0, 40.0, 16], [0, 0, 1]])


def make_world(**choices) -> OfficialWorld:
    return OfficialWorld(
        name="toy",
        rollout=RolloutConfig(
            frames=FRAMES, height=HEIGHT, width=WIDTH, references=2, keyframes=2, bank_capacity=3,
            point_capacity=2048, entry_capacity=1024,
        ),
        choices=OfficialChoices(schedule=unipc_schedule(2), **choices),
        denoiser=MODEL,
        vae=vae_config(VAE),
        image_encoder=clip_vision_config(CLIP),
    )  # fmt: skip


@pytest.fixture(scope="module")
def vae_params():
    table = wan_vae_table(vae_config(VAE))
    return our_params(table, random_tensors(table))


@pytest.fixture(scope="module")
def image():
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return jnp.asarray(np.stack([np.sin(x / 5), np.cos(y / 4), np.sin(x / 3 + y)], -1), jnp.float32)


@pytest.fixture(scope="module")
def memory(image):
    """One view of a wall, two metres off."""

    @jax.jit
    def remember(image):
        depth = jnp.full((HEIGHT, WIDTH), 2.0)
        points = depth_to_points(depth, jnp.eye(4), INTRINSICS).reshape(-1, 3)
        stereo = insert_keyframes(
            init_spatial_memory(3, HEIGHT, WIDTH), image[None], depth[None], jnp.eye(4)[None],
            INTRINSICS[None], confidence=jnp.ones((1, HEIGHT, WIDTH)),
        )  # fmt: skip
        everything = jnp.ones(len(points), bool)
        seen = image.reshape(-1, 3)
        return WorldMemory(
            points=insert_points(init_global_memory(2048), points, seen, everything),
            stereo=stereo,
            entries=init_entries(EntryConfig(8)),
        )

    return remember(image)


@pytest.fixture(scope="module")
def cameras():
    path = make_path("right", FRAMES, amplitude=0.5)
    return Cameras(w2c=jnp.asarray(path), intrinsics=jnp.broadcast_to(INTRINSICS, (FRAMES, 3, 3)))


ITSELF = ChosenViews(
    index=jnp.zeros(2, jnp.int32), position=jnp.zeros(2, jnp.int32), valid=jnp.array([True, False])
)


@functools.partial(jax.jit, static_argnames="world")
def gather(world, vae_params, memory, cameras, image):
    renders = draw_renders(world, memory, cameras, image)
    return encode_conditions(world, vae_params, memory.stereo, cameras, renders, ITSELF), renders


@pytest.fixture(scope="module")
def told(vae_params, memory, cameras, image):
    return jax.device_get(gather(make_world(), vae_params, memory, cameras, image))


@pytest.fixture(scope="module")
def other(vae_params, memory, cameras, image):
    """With the other side of every switch."""
    world = make_world(
        latent_condition="first_frame_only", quirks=Quirks(ray_x_offset=0.5),
        attention="correspondence",
    )  # fmt: skip
    return jax.device_get(gather(world, vae_params, memory, cameras, image))


@pytest.mark.row("S26")
def test_views_are_chosen_as_officially(goldens_dir):
    """The best view of every recorded target, in the order of the first that takes it."""
    with np.load(goldens_dir / "retrieval.npz") as golden:
        arrays = {name: golden[name] for name in golden}
    width, height = (int(size) for size in arrays["image_wh"])
    best = arrays["best_index"]
    order = list(dict.fromkeys(best.tolist()))
    world = make_world()
    size = {"frames": len(best) + 1, "height": height, "width": width, "references": 8}
    world = dataclasses.replace(world, rollout=dataclasses.replace(world.rollout, **size))
    views = len(arrays["ref_w2c"])
    pictures = np.random.default_rng(0).uniform(-1, 1, (views, 16, 16, 3)).astype(np.float32)
    bank = insert_keyframes(
        init_spatial_memory(views, 16, 16), jnp.asarray(pictures), jnp.ones((views, 16, 16)),
        jnp.asarray(arrays["ref_w2c"]), jnp.asarray(arrays["ref_K"]),
    )  # fmt: skip
    w2c = np.concatenate([np.eye(4)[None], arrays["target_w2c"]]).astype(np.float32)
    cameras = Cameras(w2c=jnp.asarray(w2c), intrinsics=jnp.ones((len(w2c), 3, 3)))
    features, bonus = jnp.zeros((views, 1)), jnp.zeros((len(best), views))
    choose = jax.jit(functools.partial(choose_views, world))
    found = choose(bank, features, cameras, bonus)
    found = jax.device_get(found)
    count = int(found.valid.sum())
    assert count == len(order) <= 8
    assert found.index[:count].tolist() == order
    assert found.position[:count].tolist() == [best.tolist().index(view) for view in order]
    # A view known to belong is taken whatever its overlap.
    unloved = next(view for view in range(views) if view not in order)
    loved = np.zeros(bonus.shape, np.float32)
    loved[0, unloved] = 1.0
    led = choose(bank, features, cameras, jnp.asarray(loved))
    assert np.asarray(led.index)[0] == unloved


def test_an_image_is_its_own_reference(told):
    conditions, renders = told
    np.testing.assert_allclose(conditions.reference_camera[0], conditions.camera[0], atol=1e-6)
    assert int(conditions.reference_index[0]) == 0
    np.testing.assert_array_equal(conditions.reference[0, ..., 16:20], 1)
    np.testing.assert_array_equal(conditions.reference[..., :16], conditions.reference[..., 20:])
    np.testing.assert_allclose(
        conditions.reference[0, ..., :16], conditions.render_latent[0], atol=1e-5
    )
    assert not renders.render_mask[0].any()
    assert renders.render_mask[-1].any()


def test_both_forms_of_the_condition(told, other, vae_params, image):
    """One causal clip of image and grey, or grey alone repeated; the mask marks frame 0."""
    config = vae_config(VAE)
    clip = np.zeros((1, 9, HEIGHT, WIDTH, 3), np.float32)
    clip[0, 0] = image
    expected = jax.jit(lambda p, x: encode_clip(p, x, config))(vae_params, jnp.asarray(clip))
    expected = np.asarray(expected)[0]
    full = told[0].condition
    np.testing.assert_allclose(full[..., 4:], expected, atol=1e-5)
    np.testing.assert_array_equal(full[:, 0, 0, 0], [1, 0, 0])
    alone = other[0].condition
    two = clip[:, :2]
    expected = jax.jit(lambda p, x: encode_frames(p, x, config))(vae_params, jnp.asarray(two))
    expected = np.asarray(expected)[0]
    np.testing.assert_allclose(alone[0, ..., 4:], expected[0], atol=1e-5)
    np.testing.assert_allclose(alone[1, ..., 4:], expected[1], atol=1e-5)
    np.testing.assert_array_equal(alone[1], alone[2])


def test_the_quirk_of_the_rays_is_a_switch(told, other):
    assert told[0].plucker.shape == (FRAMES, HEIGHT, WIDTH, 6)
    # One pixel to the right: the rays of the next column.
    np.testing.assert_allclose(other[0].plucker[:, :, :-1], told[0].plucker[:, :, 1:], atol=1e-5)


def test_the_quirk_of_the_quality_is_a_switch():
    """Of two views for one place, that of the texture which is taken for the stronger."""
    texture = np.random.default_rng(0).choice([-1.0, 1.0], (16, 16))
    red, blue = (np.full((16, 16, 3), -1.0) for _ in range(2))
    red[..., 0] = blue[..., 2] = texture
    w2c = np.stack([np.eye(4)] * 2)
    w2c[:, 0, 3] = [-1, 1]
    bank = insert_keyframes(
        init_spatial_memory(2, 16, 16), jnp.asarray([red, blue], jnp.float32),
        jnp.ones((2, 16, 16)), jnp.asarray(w2c, jnp.float32), jnp.stack([INTRINSICS] * 2),
    )  # fmt: skip
    cameras = Cameras(w2c=jnp.stack([jnp.eye(4)] * 3), intrinsics=jnp.stack([INTRINSICS] * 3))

    @jax.jit
    def chosen():
        found = {}
        for channels in ("official", "rgb"):
            world = make_world(quirks=Quirks(quality_channels=channels))
            world = dataclasses.replace(
                world, rollout=dataclasses.replace(world.rollout, references=1)
            )
            # Each target wants one of the two.
            views = choose_views(world, bank, jnp.zeros((2, 1)), cameras, jnp.eye(2))
            found[channels] = views.index[0]
        return found

    assert chosen() == {"official": 1, "rgb": 0}
    with pytest.raises(InputError, match="quality_channels is 'bgr', expected official or rgb"):
        Quirks(quality_channels="bgr")


def test_the_autoencoder_works_in_tiles_where_asked(vae_params, image):
    world = make_world(vae_tile=4)
    images = jnp.stack([image, image[::-1]])
    found = jax.jit(functools.partial(encode_images, world))(vae_params, images)
    tiled = functools.partial(encode_tiled, config=world.vae, tile=4, stride=3)
    np.testing.assert_allclose(found, jax.jit(tiled)(vae_params, images[:, None])[:, 0], atol=1e-5)


@pytest.mark.parametrize("keyframes", [True, False])
def test_devices_share_the_tiles_where_there_are_several(vae_params, keyframes):
    """Of a causal clip as of keyframes, on the way in and on the way out."""
    mesh = Mesh(np.array(jax.devices()[:4]), (MODEL_AXIS,))
    world = dataclasses.replace(make_world(vae_tile=4), mesh=mesh)
    frames = FRAMES
    if not keyframes:
        control = dataclasses.replace(MODEL.control, mask_downsample=4)
        frames = 1 + 4 * (FRAMES - 1)
        world = dataclasses.replace(
            world,
            denoiser=MODEL.replace(control=control),
            rollout=dataclasses.replace(world.rollout, frames=frames),
        )
    video = jax.ShapeDtypeStruct((frames, HEIGHT, WIDTH, 3), jnp.float32)
    encoded = jax.make_jaxpr(functools.partial(encode_video, world))(vae_params, video)
    latent = jax.ShapeDtypeStruct(world.latent_shape, jnp.float32)
    decoded = jax.make_jaxpr(functools.partial(decode_latent, world))(vae_params, latent)
    assert encoded.out_avals[0].shape == latent.shape
    assert decoded.out_avals[0].shape == video.shape
    for program in (encoded, decoded):
        # Tiles of 4 x 4 latent pixels, of what is left on the right, below, and in the corner.
        assert str(program).count("shard_map[") == 4


@pytest.mark.row("S17")
@pytest.mark.row("S20")
def test_the_correspondence_pattern_masks_by_geometry(other):
    """Where nothing corresponds the references have no say; dense, they have."""
    model = MODEL.replace(scan_layers=True, num_layers=1)
    params = random_params(model)
    x = normal(1, 2, FRAMES, HEIGHT // 8, WIDTH // 8, 16)
    text, tokens = normal(2, 2, 4, 6), normal(3, 5, 10)
    world = dataclasses.replace(make_world(attention="correspondence"), denoiser=model)

    @jax.jit
    def run(params, conditions):
        function = velocity_function(world, params, conditions, tokens)
        return function(text, x, jnp.float32(500), jnp.float32(0.5))

    def difference(a, b):
        return np.abs(np.asarray(a - b)).max()

    told = other[0]
    without = dataclasses.replace(told, reference_valid=np.zeros(2, bool))
    blind = jax.tree.map(np.zeros_like, told.reference_geometry)
    blind = dataclasses.replace(told, reference_geometry=blind)
    masked, alone = run(params, told), run(params, without)
    assert difference(masked, alone) > 1e-3
    assert difference(run(params, blind), alone) < 1e-5
    dense = dataclasses.replace(told, target_geometry=None, reference_geometry=None)
    assert difference(run(params, dense), masked) > 1e-3


def test_encoders_make_features_and_tokens(image):
    table = clip_vision_table(clip_vision_config(CLIP))
    params = our_params(table, random_tensors(table))
    config = clip_vision_config(CLIP)

    @jax.jit
    def both(params, image):
        return {name: image_tokens(params, image, config, name) for name in ("official", "unit")}

    tokens = both(params, image)
    assert tokens["official"].shape == (5, 10)
    assert np.abs(np.asarray(tokens["official"] - tokens["unit"])).max() > 1e-3
    table = dinov2_table(dinov2_config(DINOV2))
    params = our_params(table, random_tensors(table))
    bank = jnp.stack([image, image[::-1], image])
    features = jax.jit(lambda p, x: retrieval_features(p, x, dinov2_config(DINOV2)))(params, bank)
    assert features.shape == (3, 8)
    np.testing.assert_allclose(features[0], features[2], atol=1e-5)
    assert np.abs(np.asarray(features[0] - features[1])).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"denoiser": MODEL.replace(control=None)}, "without a control branch"),
        ({"image_encoder": None}, "the image encoder has None channels"),
        ({"vae": dataclasses.replace(vae_config(VAE), z_dim=8, latents_mean=(0.0,) * 8,
                                     latents_std=(1.0,) * 8)}, "8 channels and 8 pixels"),
        ({"rollout": RolloutConfig(frames=3, height=40, width=48)}, "40 x 48 pixels"),
    ],
)  # fmt: skip
def test_networks_that_do_not_fit_are_named(change, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(make_world(), **change)
    with pytest.raises(InputError, match="guidance is 'both', expected one of none"):
        make_world(guidance="both")
    camera_model = MODEL.replace(camera_width=None)
    with pytest.raises(InputError, match="attends to no views"):
        dataclasses.replace(make_world(attention="correspondence"), denoiser=camera_model)
