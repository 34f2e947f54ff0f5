"""Clips and images through the causal autoencoder: chunks in a scan, or frames alone.

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
    image = jnp.zeros((1, 1, size, size, config.in_channels), jnp.float32)
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
    return jnp.clip(decode_unclipped(params, latents, config), -1, 1)


def decode_unclipped(
    params: PyTree, latents: Float[Array, "b lf lh lw z"], config: WanVAEConfig
) -> Float[Array, "b f h w c"]:
    """`decode_clip` with colours as the network gives them, also beyond [-1, 1]."""
    z = denormalise_latents(latents, config)
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
    params: PyTree,
    video: Float[Array, "b f h w c"],
    config: WanVAEConfig,
    *,
    at_once: int | None = None,
) -> Float[Array, "b f lh lw z"]:
    """Every frame as a clip of its own: the keyframe latents of the second stage.

    Args:
        params: of `WanVAE(config)`.
        video: in [-1, 1].
        config: sizes.
        at_once: frames computed together, which sets the peak of memory; None for all.
    """
    return _each_frame(lambda frame: encode_clip(params, frame, config), video, at_once)


def decode_frames(
    params: PyTree,
    latents: Float[Array, "b f lh lw z"],
    config: WanVAEConfig,
    *,
    at_once: int | None = None,
) -> Float[Array, "b f h w c"]:
    """The inverse of `encode_frames`, with the same arguments."""
    return _each_frame(lambda frame: decode_clip(params, frame, config), latents, at_once)


def _each_frame(
    run: Callable[[Array], Array], frames: Float[Array, "b f h w c"], at_once: int | None
) -> Float[Array, "b f ho wo co"]:
    """A function of clips, on every frame alone, so many at a time."""
    alone = frames.reshape(-1, 1, *frames.shape[2:])
    if at_once is None or at_once >= alone.shape[0]:
        out = run(alone)
    else:
        out = jax.lax.map(lambda frame: run(frame[None])[0], alone, batch_size=at_once)
    return out.reshape(*frames.shape[:2], *out.shape[2:])


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
