"""Clips and images through the causal autoencoder: chunks in a scan, frames alone, tiles.

Latents are normalised by the config's mean and standard deviation; the encoder's mode is taken,
never a sample.
"""

import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.layers import along_channels
from worldstereo_jax.models.wan_vae import Cache, WanVAE, WanVAEConfig


def init_vae_params(config: WanVAEConfig, key: Array) -> PyTree:
    """Random parameters of `WanVAE(config)`, made with the smallest image that reaches all."""
    size = config.spatial_stride
    image = jnp.zeros((1, 1, size, size, config.in_channels))
    return jax.jit(WanVAE(config).init)(key, image)["params"]


def encode_clip(
    params: PyTree, video: Float[Array, "b f h w c"], config: WanVAEConfig
) -> Float[Array, "b lf lh lw z"]:
    """Normalised latents of a causal clip: 1 + (f - 1) / 4 latent frames for f frames.

    Args:
        params: of `WanVAE(config)`.
        video: in [-1, 1].
        config: sizes.

    Raises:
        InputError: when frames are not 1 more than a multiple of the temporal stride, or rows
            and columns no multiples of the spatial stride.
    """
    b, f, h, w, c = video.shape
    stride, chunk = config.spatial_stride, config.temporal_stride
    if (f - 1) % chunk:
        raise InputError(f"video has {f} frames, expected 1 + a multiple of {chunk}")
    if h % stride or w % stride:
        raise InputError(f"video has {h} x {w} pixels, expected multiples of {stride}")

    later = video[:, 1:].reshape(b, -1, chunk, h, w, c)
    moments = _run_chunks(params, config, WanVAE.encode_chunk, video[:, :1], later)
    return normalise_latents(moments[..., : config.z_dim], config)


def decode_clip(
    params: PyTree, latents: Float[Array, "b lf lh lw z"], config: WanVAEConfig
) -> Float[Array, "b f h w c"]:
    """The inverse of `encode_clip`: a clip of 1 + 4 (lf - 1) frames, in [-1, 1]."""
    return jnp.clip(_decode_clip(params, denormalise_latents(latents, config), config), -1, 1)


def _decode_clip(params: PyTree, z: Array, config: WanVAEConfig) -> Array:
    return _run_chunks(params, config, WanVAE.decode_chunk, z[:, :1], z[:, 1:, None])


def _run_chunks(
    params: PyTree,
    config: WanVAEConfig,
    method: Callable,
    first: Float[Array, "b 1 h w c"],
    later: Float[Array, "b n g h w c"],
) -> Float[Array, "b f ho wo co"]:
    """The first frame, then every later chunk in a scan that carries the cache."""

    def step(cache: Cache | None, x: Array) -> tuple[Cache, Array]:
        out = WanVAE(config).apply({"params": params}, x, cache, method=method)
        y, cache = typing.cast(tuple[Array, Cache], out)
        return cache, y

    cache, out = step(None, first)
    if not later.shape[1]:
        return out
    _, rest = jax.lax.scan(step, cache, later.swapaxes(0, 1))
    return jnp.concatenate([out, _join_chunks(rest)], axis=1)


def encode_frames(
    params: PyTree, video: Float[Array, "b f h w c"], config: WanVAEConfig
) -> Float[Array, "b f lh lw z"]:
    """Every frame as a clip of its own: the keyframe latents of the second stage."""
    alone = video.reshape(-1, 1, *video.shape[2:])
    latents = encode_clip(params, alone, config)
    return latents.reshape(*video.shape[:2], *latents.shape[2:])


def decode_frames(
    params: PyTree, latents: Float[Array, "b f lh lw z"], config: WanVAEConfig
) -> Float[Array, "b f h w c"]:
    """The inverse of `encode_frames`."""
    alone = latents.reshape(-1, 1, *latents.shape[2:])
    video = decode_clip(params, alone, config)
    return video.reshape(*latents.shape[:2], *video.shape[2:])


def decode_tiled(
    params: PyTree,
    latents: Float[Array, "b lf lh lw z"],
    config: WanVAEConfig,
    *,
    tile: int = 32,
    stride: int = 24,
) -> Float[Array, "b f h w c"]:
    """`decode_clip` in overlapping tiles, blended linearly where they overlap.

    Peak memory is that of one tile. Attention and norms see a tile only, so the result differs
    slightly from the whole; equal to the official tiling of the same sizes.

    Args:
        params: of `WanVAE(config)`.
        latents: normalised.
        config: sizes.
        tile: latent rows and columns of a tile.
        stride: latent pixels from one tile to the next, at most `tile`.

    Raises:
        InputError: when the stride does not lie in 1 .. tile.
    """
    if not 1 <= stride <= tile:
        raise InputError(f"stride is {stride}, expected 1 to the tile's {tile}")
    scale = config.spatial_stride
    lh, lw = latents.shape[2:4]
    z = denormalise_latents(latents, config)
    overlap, step = (tile - stride) * scale, stride * scale
    rows: list[list[Array]] = []
    joined = []
    for i, top in enumerate(range(0, lh, stride)):
        rows.append([])
        strip = []
        for j, left in enumerate(range(0, lw, stride)):
            part = z[:, :, top : top + tile, left : left + tile]
            image = _decode_clip(params, part, config)
            if i > 0:
                image = _blend(rows[i - 1][j], image, overlap, axis=2)
            if j > 0:
                image = _blend(rows[i][j - 1], image, overlap, axis=3)
            # The blended tile, as the official code keeps it for its neighbours.
            rows[i].append(image)
            strip.append(image[:, :, :step, :step])
        joined.append(jnp.concatenate(strip, axis=3))
    video = jnp.concatenate(joined, axis=2)[:, :, : lh * scale, : lw * scale]
    return jnp.clip(video, -1, 1)


def normalise_latents(
    latents: Float[Array, "*batch z"], config: WanVAEConfig
) -> Float[Array, "*batch z"]:
    """(latents - mean) / std per channel."""
    mean, std = _statistics(config)
    return (latents - along_channels(mean, latents)) / along_channels(std, latents)


def denormalise_latents(
    latents: Float[Array, "*batch z"], config: WanVAEConfig
) -> Float[Array, "*batch z"]:
    """latents * std + mean per channel."""
    mean, std = _statistics(config)
    return latents * along_channels(std, latents) + along_channels(mean, latents)


def _statistics(config: WanVAEConfig) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(config.latents_mean, np.float32), np.asarray(config.latents_std, np.float32)


def _join_chunks(chunks: Float[Array, "n b g h w c"]) -> Float[Array, "b f h w c"]:
    n, b, g, *rest = chunks.shape
    return chunks.swapaxes(0, 1).reshape(b, n * g, *rest)


def _blend(before: Array, after: Array, extent: int, axis: int) -> Array:
    """Fade from the end of `before` into the start of `after` along an image axis."""
    extent = min(before.shape[axis], after.shape[axis], extent)
    if not extent:
        return after
    weight = np.arange(extent, dtype=np.float32) / max(extent, 1)
    weight = weight.reshape([-1 if i == axis else 1 for i in range(after.ndim)])
    old = jax.lax.slice_in_dim(before, before.shape[axis] - extent, None, axis=axis)
    new = jax.lax.slice_in_dim(after, 0, extent, axis=axis)
    rest = jax.lax.slice_in_dim(after, extent, None, axis=axis)
    return jnp.concatenate([old * (1 - weight) + new * weight, rest], axis=axis)
