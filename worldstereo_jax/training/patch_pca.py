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


def encode_pca(pca: PatchPca, images: Float[ndarray, "b h w 3"]) -> Float[ndarray, "b lh lw c"]:
    """Whitened coefficients of every 8x8 patch: each channel has about unit variance."""
    b, h, w, _ = images.shape
    coefficients = ((image_patches(images) - pca.mean) @ pca.basis) / pca.std
    return coefficients.reshape(b, h // PATCH, w // PATCH, -1)


def fit_lapped_decoder(
    codes: Float[ndarray, "b lh lw c"], images: Float[ndarray, "b h w 3"]
) -> tuple[Float[ndarray, "3 3 c p"], Float[ndarray, " p"]]:
    """Ridge regression of each patch on the codes of itself and its eight neighbours.

    Returns kernel and bias of a 3x3 convolution from codes (zero outside the image) to flattened
    patches. Against the components alone this removes much of the blockiness.
    """
    b, lh, lw, c = codes.shape
    padded = np.pad(codes, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = [padded[:, y : y + lh, x : x + lw].reshape(-1, c) for y in range(3) for x in range(3)]
    rows.append(np.ones((b * lh * lw, 1), codes.dtype))
    design = np.concatenate(rows, axis=1).astype(np.float64)
    normal = design.T @ design + 1e-5 * len(design) * np.eye(design.shape[1])
    solution = np.linalg.solve(normal, design.T @ image_patches(images)).astype(np.float32)
    return solution[:-1].reshape(3, 3, c, -1), solution[-1]


def start_from_pca(
    params: dict[str, typing.Any], pca: PatchPca, images: Float[ndarray, "b h w 3"]
) -> dict[str, typing.Any]:
    """Set a TinyVae's linear parts.

    The encoder takes whitened components, the decoder the regression on `images`.
    """
    kernel, bias = fit_lapped_decoder(encode_pca(pca, images), images)
    components = pca.basis / pca.std[None, :]
    encoder = np.zeros((3, 3, *components.shape), np.float32)
    encoder[1, 1] = components
    return dict(
        params,
        linear_encoder={
            "kernel": jnp.asarray(encoder),
            "bias": jnp.asarray(-(pca.mean @ components)),
        },
        linear_decoder={"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)},
    )
