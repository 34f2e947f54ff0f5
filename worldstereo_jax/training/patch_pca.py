"""Principal components of image patches: the small VAE's start and its yardstick."""

import typing

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.models.vae_tiny import PATCH


class PatchPca(typing.NamedTuple):
    """A linear autoencoder of 8x8 RGB patches.

    mean    [192], the mean patch, in image units [-1, 1]
    basis   [192, c], orthonormal columns, greatest variance first
    std     [c], standard deviation of each coefficient
    """

    mean: np.ndarray
    basis: np.ndarray
    std: np.ndarray


def image_patches(images: Float[ndarray, "b h w 3"]) -> Float[ndarray, "n p"]:
    """Cut images into 8x8 patches, flattened rows first, then columns, then colours."""
    b, h, w, c = images.shape
    grid = images.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, PATCH * PATCH * c)


def fit_patch_pca(images: Float[ndarray, "b h w 3"], channels: int = 16) -> PatchPca:
    """Fit `channels` principal components to all 8x8 patches of images in [-1, 1]."""
    patches = image_patches(images).astype(np.float64)
    mean = patches.mean(axis=0)
    covariance = np.cov(patches - mean, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    basis = vectors[:, ::-1][:, :channels]
    # The sign of an eigenvector is arbitrary; fix it so that the fit is reproducible.
    basis = basis * np.where(basis.sum(axis=0) < 0, -1.0, 1.0)
    std = np.sqrt(np.maximum(values[::-1][:channels], 1e-12))
    return PatchPca(*(part.astype(np.float32) for part in (mean, basis, std)))


def reconstruct_pca(pca: PatchPca, images: Float[ndarray, "b h w 3"]) -> Float[ndarray, "b h w 3"]:
    """Encode and decode images with the components alone."""
    b, h, w, c = images.shape
    coefficients = (image_patches(images) - pca.mean) @ pca.basis
    patches = coefficients @ pca.basis.T + pca.mean
    grid = patches.reshape(b, h // PATCH, w // PATCH, PATCH, PATCH, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape).astype(np.float32)


def start_from_pca(params: dict[str, typing.Any], pca: PatchPca) -> dict[str, typing.Any]:
    """Put the components into a TinyVae's linear parts, whitened: codes have unit variance."""
    encoder = pca.basis / pca.std[None, :]
    return dict(
        params,
        linear_encoder={
            "kernel": jnp.asarray(encoder),
            "bias": jnp.asarray(-(pca.mean @ encoder)),
        },
        linear_decoder={
            "kernel": jnp.asarray((pca.basis * pca.std[None, :]).T),
            "bias": jnp.asarray(pca.mean),
        },
    )
