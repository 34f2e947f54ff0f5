"""The causal autoencoder: chunks against the whole, and diffusers' AutoencoderKLWan."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.wan_vae_names import wan_vae_table
from worldstereo_jax.models.wan_vae import CausalConv, WanVAE, WanVAEConfig
from worldstereo_jax.models.wan_vae_clips import (
    decode_clip,
    decode_frames,
    denormalise_latents,
    encode_clip,
    encode_frames,
    init_vae_params,
    normalise_latents,
)

CONFIG = WanVAEConfig(
    base_dim=4,
    z_dim=3,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    latents_mean=(0.1, -0.2, 0.3),
    latents_std=(1.5, 2.0, 0.5),
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def table():
    return wan_vae_table(CONFIG)


@pytest.fixture(scope="module")
def official(table):
    """Random tensors under official names."""
    generator = np.random.default_rng(0)
    return {
        name: (
            generator.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))
            + name.endswith("gamma")
        ).astype(np.float32)
        for name, shape in table.official_shapes().items()
    }


@pytest.fixture(scope="module")
def params(table, official):
    return jax.tree.map(jnp.asarray, table.params(official))


@pytest.fixture(scope="module")
def video():
    return jnp.clip(normal(1, 1, 9, 8, 12, 3), -1, 1)


@functools.partial(jax.jit, static_argnames="function")
def run(params, x, function):
    return function(params, x, CONFIG)


@pytest.fixture(scope="module")
def latents(params, video):
    return run(params, video, encode_clip)


def test_a_frame_alone_is_not_convolved_with_the_zeros_before_it(params, video):
    """A third of the work, to the same result: that of the first of three frames."""
    convolve = CausalConv(2)
    variables = convolve.init(jax.random.key(0), video[:, :1], None)

    @jax.jit
    def first(x):
        return convolve.apply(variables, x, None)[0][:, :1]

    np.testing.assert_allclose(first(video[:, :1]), first(video[:, :3]), atol=1e-6)
    kernels = re.findall(r"tensor<1x3x3x3x2xf32>", first.lower(video[:, :1]).as_text())
    assert kernels, "the convolution has all three frames of its kernel"


def test_the_past_never_depends_on_the_future(params, video, latents):
    assert latents.shape == (1, 3, 2, 3, 3)
    changed = run(params, video.at[:, 5:].set(0.5), encode_clip)
    np.testing.assert_array_equal(changed[:, :2], latents[:, :2])
    assert np.abs(np.asarray(changed - latents)[:, 2]).max() > 1e-2
    decoded = run(params, latents, decode_clip)
    assert decoded.shape == video.shape
    again = run(params, latents.at[:, 2:].add(3.0), decode_clip)
    np.testing.assert_array_equal(again[:, :5], decoded[:, :5])
    assert np.abs(np.asarray(again - decoded)[:, 5:]).max() > 1e-3
    assert np.abs(np.asarray(decoded)).max() <= 1


def test_chunks_of_any_length_give_the_same_clip(params, latents):
    """All later latent frames as one chunk, whose convolutions need no cache among themselves."""
    z = denormalise_latents(latents, CONFIG)

    @jax.jit
    def in_two_chunks(z):
        decode = functools.partial(
            WanVAE(CONFIG).apply, {"params": params}, method=WanVAE.decode_chunk
        )
        first, cache = decode(z[:, :1], None)
        second, _ = decode(z[:, 1:], cache)
        return jnp.clip(jnp.concatenate([first, second], axis=1), -1, 1)

    expected = run(params, latents, decode_clip)
    np.testing.assert_allclose(in_two_chunks(z), expected, atol=1e-5)


def test_frames_alone_are_clips_of_one_frame(params, video, latents):
    """The first latent frame of a clip is that of its first frame alone."""
    pair = jnp.concatenate([video[:, 5:6], video[:, :1]], axis=1)
    alone = run(params, pair, encode_frames)
    np.testing.assert_allclose(alone[:, 1], latents[:, 0], atol=1e-5)
    decoded = run(params, alone, decode_frames)
    assert decoded.shape == pair.shape
    expected = run(params, latents, decode_clip)[:, 0]
    np.testing.assert_allclose(decoded[:, 1], expected, atol=1e-5)


def test_sizes_that_do_not_fit_are_named(params, video):
    with pytest.raises(InputError, match="8 frames, expected 1 \\+ a multiple of 4"):
        encode_clip(params, video[:, :8], CONFIG)
    with pytest.raises(InputError, match="multiples of 4"):
        encode_clip(params, video[:, :, :6], CONFIG)
    with pytest.raises(InputError, match="temporal_downsample"):
        WanVAEConfig(temporal_downsample=(True,))


def test_the_full_size_gives_the_working_latents():
    config = WanVAEConfig()
    params = jax.eval_shape(lambda: init_vae_params(config, jax.random.key(0)))
    video = jax.ShapeDtypeStruct((1, 81, 480, 832, 3), jnp.float32)
    latents = jax.eval_shape(lambda p, x: encode_clip(p, x, config), params, video)
    assert latents.shape == (1, 21, 60, 104, 16)
    frames = jax.eval_shape(lambda p, x: decode_frames(p, x, config), params, latents)
    assert frames.shape == (1, 21, 480, 832, 3)


def test_bfloat16_stays_within_a_few_percent(params, video, latents):
    low = dataclasses.replace(CONFIG, dtype="bfloat16")
    found = jax.jit(lambda p, x: encode_clip(p, x, low))(params, video[:, :1])
    assert found.dtype == jnp.float32
    assert_close(found, np.asarray(latents[:, :1]), bound=0.05)


def test_names_and_values_round_trip(table, official, params):
    back = table.tensors(params)
    assert set(back) == set(official)
    for name, array in official.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.fixture(scope="module")
def theirs(official):
    diffusers = pytest.importorskip("diffusers", reason="the parity extra is not installed")
    torch = pytest.importorskip("torch")
    model = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=3,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=list(CONFIG.latents_mean),
        latents_std=list(CONFIG.latents_std),
        scale_factor_spatial=4,
    ).eval()
    assert set(model.state_dict()) == set(official)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in official.items()})
    return model


def as_torch(x):
    import torch  # pyright: ignore[reportMissingImports]

    return torch.from_numpy(np.array(x)).movedim(-1, 1)


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def assert_close(found, expected, bound=1e-4):
    error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    assert error < bound, error


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_equals_diffusers(theirs, params, video, frames):
    clip = video[:, :frames]
    moments = from_torch(theirs.encode(as_torch(clip)).latent_dist.mode())
    latents = run(params, clip, encode_clip)
    assert_close(latents, normalise_latents(jnp.asarray(moments), CONFIG))
    expected = from_torch(theirs.decode(as_torch(moments)).sample)
    assert expected.shape == clip.shape
    assert_close(run(params, latents, decode_clip), expected)
