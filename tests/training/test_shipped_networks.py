"""What the trained weights that ship inside the package must be able to do."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.data.textures import (
    HELD_OUT_PHOTOGRAPHS,
    TRAIN_PHOTOGRAPHS,
    load_photograph,
)
from worldstereo_jax.evaluation.image_metrics import psnr
from worldstereo_jax.interop.weights import SHIPPED_WEIGHTS, load_weights
from worldstereo_jax.models.depth_tiny import TinyDepth, TinyDepthConfig
from worldstereo_jax.models.vae_tiny import TinyVae, TinyVaeConfig
from worldstereo_jax.training.patch_pca import fit_patch_pca, reconstruct_pca


def _half(name):
    """A photograph averaged over 2x2 pixels, in [-1, 1], a multiple of 8 large."""
    image = load_photograph(name).astype(np.float32)
    image = image[: image.shape[0] // 16 * 16, : image.shape[1] // 16 * 16]
    h, w = image.shape[0] // 2, image.shape[1] // 2
    return (image.reshape(h, 2, w, 2, 3).mean((1, 3)) / 127.5 - 1.0)[None]


@pytest.fixture(scope="module")
def vae():
    params, metadata = load_weights(SHIPPED_WEIGHTS / "tiny_vae.safetensors")
    return TinyVae(TinyVaeConfig.from_dict(metadata["config"])), params


def test_weights_stay_small():
    assert (SHIPPED_WEIGHTS / "tiny_vae.safetensors").stat().st_size < 4 * 2**20
    assert (SHIPPED_WEIGHTS / "tiny_depth.safetensors").stat().st_size < 4 * 2**20


def test_autoencoder_beats_principal_components(vae):
    net, params = vae
    patches = [_half(name)[:, :192, :192] for name in TRAIN_PHOTOGRAPHS if name != "page"]
    square = [x for x in patches if x.shape[1:3] == (192, 192)]
    assert len(square) > 5
    pca = fit_patch_pca(np.concatenate(square))
    reconstruct: typing.Any = jax.jit(lambda x: net.apply({"params": params}, x))
    gains = []
    for name in HELD_OUT_PHOTOGRAPHS:
        image = _half(name)
        linear, found = (
            psnr(np.clip(x, -1, 1), image)
            for x in (reconstruct_pca(pca, image), reconstruct(image))
        )
        gains.append(float((found - linear)[0]))
    assert min(gains) > 0.4
    assert np.mean(gains) > 0.8


def test_latents_are_about_normal(vae):
    net, params = vae
    encode: typing.Any = jax.jit(lambda x: net.apply({"params": params}, x, method=TinyVae.encode))
    latent = np.concatenate(
        [encode(jnp.asarray(_half(n))).reshape(-1, 16) for n in ("chelsea", "coffee", "rocket")]
    )
    # Three photographs are a small sample: brightness and colour lie where they lie.
    assert (np.abs(latent.mean(0)) < 1.0).all()
    assert (np.abs(np.log(latent.std(0))) < 0.9).all()


def test_depth_orders_held_out_scenes():
    params, metadata = load_weights(SHIPPED_WEIGHTS / "tiny_depth.safetensors")
    net = TinyDepth(TinyDepthConfig.from_dict(metadata["config"]))
    predict: typing.Any = jax.jit(lambda x: net.apply({"params": params}, x))
    correlations, errors, constant = [], [], []
    for clip in SceneClips(range(900_000, 900_006), split="held_out", frames=2):
        truth = np.log(clip["depth"][:1])
        guess = np.log(np.asarray(predict(jnp.asarray(clip["image"][:1]))))
        correlations.append(np.corrcoef(truth.ravel(), guess.ravel())[0, 1])
        errors.append(np.abs(truth - guess).mean())
        constant.append(np.abs(truth - np.log(3.0)).mean())
    assert np.mean(correlations) > 0.6
    assert np.mean(errors) < 0.75 * np.mean(constant)
