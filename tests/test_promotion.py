"""The main path runs where no type is promoted implicitly, as some notebooks ask of jax.

All of it is traced with the shapes of small worlds; next to nothing is compiled.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from tests.models.official_modules import our_params, random_tensors
from tests.models.small_model import random_params
from tests.sampling import test_official_stereo as official
from tests.small_world import MODEL, ROLLOUT, WORLD
from tests.toy_official import VAE
from worldstereo_jax.interop.component_configs import vae_config
from worldstereo_jax.interop.wan_vae_names import wan_vae_table
from worldstereo_jax.memory.entry_codec import quantise_entries, restore_entries
from worldstereo_jax.memory.entry_folder import entries_from_fields, entry_fields
from worldstereo_jax.memory.entry_warp import warp_layers
from worldstereo_jax.memory.folder import load_memory, load_optional_fields, save_memory
from worldstereo_jax.memory.keyframe_edit import Views, merge_keyframes
from worldstereo_jax.models.worldstereo import init_params
from worldstereo_jax.sampling.conditions import gather_conditions
from worldstereo_jax.sampling.official_clip import sample_latent
from worldstereo_jax.sampling.official_conditions import (
    draw_renders,
    encode_conditions,
    read_stereo,
)
from worldstereo_jax.sampling.official_world import Prompt
from worldstereo_jax.sampling.rollout import make_rollout
from worldstereo_jax.sampling.world import (
    Cameras,
    WorldMemory,
    WorldParams,
    empty_memory,
    init_memory,
)
from worldstereo_jax.sampling.world_edit import begin_clip, prune_world, select_world, undo_clip
from worldstereo_jax.training.official_objective import in_compute_type


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(params=["strict", "x64"])
def strictness(request):
    """Or with `jax_enable_x64`, where counts are wider and promoted, and no field of ours is."""
    if request.param == "strict":
        yield
        return
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def doubles(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype in ("float64", "int64", "uint64")]


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def cameras_of(frames):
    return Cameras(w2c=floats(frames, 4, 4), intrinsics=floats(frames, 3, 3))


KEY = jax.eval_shape(lambda: jax.random.key(0))
SIZE = (ROLLOUT.height, ROLLOUT.width)


@pytest.mark.usefixtures("strictness")
def test_a_rollout_from_an_image():
    def run(image, depth, cameras, key):
        params = WorldParams(
            denoiser=init_params(MODEL, key),
            vae=WORLD.vae.init(key, image[None])["params"],
            depth=WORLD.depth.init(key, image[None])["params"],
        )
        first = jax.tree.map(lambda leaf: leaf[0], cameras)
        memory = init_memory(ROLLOUT, image, depth, first.w2c, first.intrinsics)
        gathered = gather_conditions(WORLD, params.vae, memory, cameras)
        return *make_rollout(WORLD)(params, memory, cameras, key), gathered

    clip, *others = jax.eval_shape(
        run, floats(*SIZE, 3), floats(*SIZE), cameras_of(ROLLOUT.frames), KEY
    )
    assert clip.video.shape == (ROLLOUT.frames, *SIZE, 3)
    assert clip.video.dtype == jnp.float32
    assert not doubles((clip, others))


@pytest.mark.usefixtures("strictness")
def test_edits_of_a_memory_and_its_warp():
    def run(memory: WorldMemory, camera):
        undone = undo_clip(begin_clip(memory))
        pruned = prune_world(undone, views=2, entries=100)
        chosen = select_world(pruned, -jnp.ones(3), jnp.ones(3))
        views = (Views(part.stereo, part.entries) for part in (memory, chosen))
        (_, entries), _ = merge_keyframes(*views)
        restored = restore_entries(quantise_entries(entries))
        height, width = SIZE
        return warp_layers(restored, *camera, height=height, width=width)

    memory = jax.eval_shape(lambda: empty_memory(ROLLOUT))
    warped = jax.eval_shape(run, memory, (floats(4, 4), floats(3, 3)))
    assert warped.mask.shape == (2, *SIZE)
    assert not doubles(warped)


def test_a_memory_is_saved_and_loaded(tmp_path):
    memory = empty_memory(dataclasses.replace(ROLLOUT, height=16, width=16, entry_capacity=64))
    folder, fields = tmp_path / "memory", entry_fields(memory.entries)
    save_memory(folder, memory.points, memory.stereo, model="toy", optional=fields)
    points, stereo = load_memory(folder, model="toy")
    entries = entries_from_fields(load_optional_fields(folder), capacity=64)
    again = WorldMemory(points, stereo, entries)
    jax.tree.map(np.testing.assert_array_equal, again, memory)


@pytest.mark.parametrize("strength", [None, 2.0])
@pytest.mark.parametrize("implementation", ["reference", "xla_chunked"])
def test_attention_and_its_gradient(implementation, strength):
    def attend(q, k, v, places):
        known = (pk.make_token_geometry(x, radius=0.3) for x in places)
        mask = pk.joint_correspondence(*known, strength=strength, tile_q=32, tile_k=32)
        mask = mask if mask.soft else pk.pack_partial_tiles(mask)
        out = pk.block_sparse_attention(q, k, v, mask, implementation=implementation)
        return out.sum(), pk.tile_density(mask)

    q, places = floats(2, 70, 2, 8), (floats(2, 40, 3), floats(2, 30, 3))
    found = jax.eval_shape(jax.grad(attend, argnums=(0, 1, 2), has_aux=True), q, q, q, places)
    assert found[0][0].dtype == jnp.float32


def test_an_official_clip_from_memory_to_latent():
    """Of a model in bfloat16, as checkpoints are loaded."""
    config = official.READS.replace(dtype="bfloat16")
    world = official.make_world(config)
    table = wan_vae_table(vae_config(VAE))

    def run(memory, cameras, noise):
        renders = draw_renders(world, memory, cameras, memory.stereo.images[0])
        read = read_stereo(world, memory, cameras, renders, official.FIRST)
        vae = our_params(table, random_tensors(table))
        told = encode_conditions(world, vae, memory.stereo, cameras, renders, official.FIRST, read)
        prompt = Prompt(*official.TEXT)
        params = in_compute_type(random_params(config), "bfloat16")
        return sample_latent(world, params, told, prompt, official.TOKENS, noise)

    memory = jax.eval_shape(lambda: empty_memory(world.rollout))
    noise = floats(*official.X[:1].shape)
    found = jax.eval_shape(run, memory, cameras_of(official.FRAMES), noise)
    assert found.shape == noise.shape
