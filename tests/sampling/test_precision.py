"""No stage of the official pipeline multiplies in fewer bits than it says."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tests.lowered import coarse_products
from tests.models.official_modules import our_params, random_tensors
from tests.sampling.test_official_conditions import FRAMES, HEIGHT, ITSELF, WIDTH, make_world
from tests.toy_official import CLIP, MODEL, VAE
from worldstereo_jax.interop.component_configs import clip_vision_config, vae_config
from worldstereo_jax.interop.encoder_names import clip_vision_table
from worldstereo_jax.interop.wan_vae_names import wan_vae_table
from worldstereo_jax.models.worldstereo import init_params
from worldstereo_jax.sampling.official_rollout import make_official_rollout
from worldstereo_jax.sampling.official_world import Prompt
from worldstereo_jax.sampling.precision import jit_at
from worldstereo_jax.sampling.world import Cameras, empty_memory


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def shapes(table):
    return jax.eval_shape(lambda: our_params(table, random_tensors(table)))


IMAGE = shape(HEIGHT, WIDTH, 3)
CAMERAS = Cameras(w2c=shape(FRAMES, 4, 4), intrinsics=shape(FRAMES, 3, 3))
VAE_PARAMS = shapes(wan_vae_table(vae_config(VAE)))


def rollout_in(dtype):
    world = make_world(guidance="none")
    return make_official_rollout(
        dataclasses.replace(world, denoiser=MODEL.replace(dtype=dtype, scan_layers=True))
    )


@pytest.fixture(scope="module")
def told():
    """The memory, what is drawn of it, and the conditions, as shapes."""
    rollout = rollout_in("float32")
    memory = jax.eval_shape(lambda: empty_memory(rollout.world.rollout))
    renders = jax.eval_shape(rollout.draw, memory, CAMERAS, IMAGE)
    seen = jax.eval_shape(rollout.look, memory, CAMERAS, renders, ITSELF)
    arguments = VAE_PARAMS, memory.stereo, CAMERAS, renders, ITSELF, seen
    return memory, arguments, jax.eval_shape(rollout.encode, *arguments)


def test_in_float32_no_product_of_any_stage_is_rounded(told):
    rollout = rollout_in("float32")
    memory, arguments, conditions = told
    params = jax.eval_shape(lambda: init_params(rollout.world.denoiser, jax.random.key(0)))
    prompt, tokens = Prompt(text=shape(4, 6), negative=shape(4, 6)), shape(5, 10)
    key = jax.eval_shape(lambda: jax.random.key(0))
    assert not coarse_products(rollout.draw, memory, CAMERAS, IMAGE)
    assert not coarse_products(rollout.encode, *arguments)
    assert not coarse_products(rollout.denoise, params, conditions, prompt, tokens, key)
    assert not coarse_products(rollout.decode, VAE_PARAMS, shape(*rollout.world.latent_shape))


def test_beside_a_transformer_of_fewer_bits_the_other_networks_round_little_or_nothing():
    rollout = rollout_in("bfloat16")
    latent = shape(*rollout.world.latent_shape)
    assert not coarse_products(rollout.decode, VAE_PARAMS, latent, enough=("HIGH", "HIGHEST"))
    clip = shapes(clip_vision_table(clip_vision_config(CLIP)))
    assert not coarse_products(rollout.see, clip, IMAGE)


def test_a_precision_lasts_as_long_as_its_function():
    def squared(x):
        return x @ x

    assert not coarse_products(jit_at("highest", squared), shape(3, 3))
    assert coarse_products(jit_at("high", squared), shape(3, 3))
    assert coarse_products(jit_at(None, squared), shape(3, 3))
    assert jax.config.jax_default_matmul_precision is None
