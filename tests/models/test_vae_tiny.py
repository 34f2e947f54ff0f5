import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small_model import apply, init
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.vae_tiny import (
    TinyVae,
    TinyVaeConfig,
    decode_frames,
    encode_frames,
    from_patches,
    to_patches,
)

SMALL = TinyVaeConfig(
    encoder_widths=(4, 6, 8),
    encoder_blocks=(1, 1, 1),
    decoder_widths=(4, 6, 8),
    decoder_blocks=(1, 1, 1),
)


@pytest.fixture(scope="module")
def params():
    return init(TinyVae(SMALL), jnp.zeros((1, 16, 16, 3)))


def _image(key, b=2, h=16, w=24):
    return np.random.default_rng(key).uniform(-1.0, 1.0, (b, h, w, 3)).astype(np.float32)


def test_patches_round_trip_and_order():
    image = _image(0)
    patches = to_patches(jnp.asarray(image), 8)
    assert patches.shape == (2, 2, 3, 192)
    np.testing.assert_array_equal(from_patches(patches, 8), image)
    patch = np.asarray(patches)[1, 1, 2].reshape(8, 8, 3)
    np.testing.assert_array_equal(patch, image[1, 8:16, 16:24])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 24), (40, 8)])
def test_shapes_for_any_multiple_of_eight(params, height, width):
    vae = TinyVae(SMALL)
    image = _image(1, 1, height, width)

    @jax.jit
    def both(params, image):
        latent = vae.apply({"params": params}, image, method=TinyVae.encode)
        output = vae.apply({"params": params}, latent, method=TinyVae.decode)
        return latent, output, vae.apply({"params": params}, image)

    latent, output, at_once = both(params, image)
    assert latent.shape == (1, height // 8, width // 8, 16)
    assert output.shape == image.shape
    np.testing.assert_array_equal(at_once, output)


def test_other_sizes_are_refused(params):
    with pytest.raises(InputError, match="multiples of 8"):
        TinyVae(SMALL).apply({"params": params}, jnp.zeros((1, 12, 16, 3)), method=TinyVae.encode)


def test_residual_networks_start_silent(params):
    # Killing every residual weight but the last layer's must change nothing at the start.
    vae = TinyVae(SMALL)
    params = jax.tree.map(np.asarray, params)
    silent = dict(params)
    for name in ("residual_encoder", "residual_decoder"):
        silent[name] = {
            layer: value if layer == "out" else jax.tree.map(np.zeros_like, value)
            for layer, value in params[name].items()
        }
    image = _image(2)
    expected = np.asarray(apply(vae, silent, image))
    np.testing.assert_allclose(apply(vae, params, image), expected, atol=1e-6)
    # And they do count once that layer is not zero.
    loud = jax.tree.map(lambda x: x, params)
    loud["residual_decoder"]["out"]["kernel"] = np.ones_like(
        params["residual_decoder"]["out"]["kernel"]
    )
    assert np.abs(np.asarray(apply(vae, loud, image)) - expected).max() > 1e-2


def test_statistics_normalise_the_latent_and_cancel(params):
    plain = TinyVae(SMALL)
    mean, std = np.linspace(-1, 1, 16), np.linspace(0.5, 2, 16)
    config = dataclasses.replace(
        SMALL, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist())
    )
    scaled = TinyVae(config)
    image = _image(3)
    raw = np.asarray(apply(plain, params, image, method=TinyVae.encode))
    latent = apply(scaled, params, image, method=TinyVae.encode)
    np.testing.assert_allclose(latent, (raw - mean) / std, atol=1e-5)
    np.testing.assert_allclose(apply(scaled, params, image), apply(plain, params, image), atol=1e-5)


def test_frames_are_coded_alone(params):
    vae = TinyVae(SMALL)
    encode = jax.jit(functools.partial(encode_frames, vae))
    video = np.stack([_image(4, 3), _image(5, 3)])
    latents = np.asarray(encode(params, video))
    assert latents.shape == (2, 3, 2, 3, 16)
    alone = encode(params, video[1:, 2:])
    np.testing.assert_allclose(latents[1:, 2:], alone, atol=1e-5)
    output = np.asarray(jax.jit(functools.partial(decode_frames, vae))(params, latents))
    assert output.shape == video.shape
    np.testing.assert_allclose(output[1], apply(vae, params, video[1]), atol=1e-5)


def test_config_survives_json_and_refuses_what_it_does_not_know():
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(SMALL).items()}
    assert TinyVaeConfig.from_dict(values) == SMALL
    with pytest.raises(InputError, match="widht"):
        TinyVaeConfig.from_dict({"widht": 3})
    with pytest.raises(InputError, match="latents_std"):
        TinyVaeConfig(latents_std=(1.0,))
