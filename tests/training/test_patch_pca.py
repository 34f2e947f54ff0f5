import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.evaluation.image_metrics import psnr
from worldstereo_jax.models.vae_tiny import TinyVae, TinyVaeConfig, to_patches
from worldstereo_jax.training.patch_pca import (
    encode_pca,
    fit_lapped_decoder,
    fit_patch_pca,
    image_patches,
    reconstruct_pca,
    start_from_pca,
)


@functools.partial(jax.jit, static_argnames="method")
def _apply(params, x, method=None) -> typing.Any:
    return TinyVae(SMALL).apply({"params": params}, x, method=method)


@functools.cache
def _initial() -> typing.Any:
    init = jax.jit(TinyVae(SMALL).init)
    return init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]


SMALL = TinyVaeConfig(
    encoder_widths=(4, 4, 4),
    encoder_blocks=(0, 0, 0),
    decoder_widths=(4, 4, 4),
    decoder_blocks=(0, 0, 0),
)


def _images(n=24, seed=0):
    """Smooth random fields, which neighbouring patches share."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(n, 9, 9, 3))
    full = np.asarray(jax.image.resize(coarse, (n, 48, 48, 3), "cubic"))
    return (np.tanh(full) + 0.02 * rng.normal(size=full.shape)).clip(-1, 1).astype(np.float32)


def test_patches_are_those_of_the_model():
    images = _images(2)
    expected = np.asarray(to_patches(jnp.asarray(images), 8)).reshape(-1, 192)
    np.testing.assert_array_equal(image_patches(images), expected)


def test_components_are_orthonormal_ordered_and_optimal():
    images = _images()
    pca = fit_patch_pca(images, 8)
    np.testing.assert_allclose(pca.basis.T @ pca.basis, np.eye(8), atol=1e-5)
    assert (np.diff(pca.std) <= 0).all()
    codes = encode_pca(pca, images).reshape(-1, 8)
    np.testing.assert_allclose(codes.std(axis=0), 1.0, rtol=1e-2)
    error = np.square(reconstruct_pca(pca, images) - images).mean()
    # Eckart-Young: the truncated singular value decomposition is the best there is.
    patches = image_patches(images).astype(np.float64)
    s = np.linalg.svd(patches - patches.mean(axis=0), compute_uv=False)
    best = np.square(s[8:]).sum() / patches.size
    np.testing.assert_allclose(error, best, rtol=1e-3)


def test_neighbours_help_the_decoder():
    images, unseen = _images(), _images(8, seed=1)
    pca = fit_patch_pca(images)
    kernel, bias = fit_lapped_decoder(encode_pca(pca, images), images)
    assert kernel.shape == (3, 3, 16, 192)
    params = start_from_pca(dict(_initial()), pca, images)
    np.testing.assert_allclose(params["linear_decoder"]["kernel"], kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(params["linear_decoder"]["bias"], bias, rtol=1e-4, atol=1e-6)
    plain = np.mean(psnr(reconstruct_pca(pca, unseen), unseen))
    lapped = np.mean(psnr(_apply(params, unseen), unseen))
    assert lapped > plain + 0.1


def test_the_model_starts_at_the_components():
    images = _images(4)
    pca = fit_patch_pca(_images())
    params = start_from_pca(dict(_initial()), pca, images)
    codes = _apply(params, images, TinyVae.encode_raw)
    np.testing.assert_allclose(codes, encode_pca(pca, images), atol=2e-4)
