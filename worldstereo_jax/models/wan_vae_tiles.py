"""The causal autoencoder within bounded memory: in overlapping tiles, or spread over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.wan_vae import WanVAEConfig
from worldstereo_jax.models.wan_vae_clips import (
    decode_frames,
    decode_unclipped,
    encode_clip,
    encode_frames,
)

TILE, STRIDE = 32, 24
"""The official tiling, in latent pixels: 256 image pixels, 192 from one tile to the next."""


def encode_tiled(
    params: PyTree,
    video: Float[Array, "b f h w c"],
    config: WanVAEConfig,
    *,
    tile: int = TILE,
    stride: int = STRIDE,
) -> Float[Array, "b lf lh lw z"]:
    """`encode_clip` in overlapping tiles, their latents blended linearly where they overlap.

    Peak memory is that of one tile. Attention and convolutions see a tile only, so the result
    differs slightly from the whole; equal to the official tiling of the same sizes. A clip that
    fits into one tile is encoded whole.

    Args:
        params: of `WanVAE(config)`.
        video: in [-1, 1].
        config: sizes.
        tile: rows and columns of a tile in latent pixels.
        stride: latent pixels from one tile to the next, at most `tile`.

    Raises:
        InputError: when the stride does not lie in 1 .. tile, and as `encode_clip` does.
    """
    scale = config.spatial_stride

    def encode(part: Array) -> Array:
        return encode_clip(params, part, config)

    height, width = video.shape[2:4]
    if height % scale or width % scale:
        raise InputError(f"video has {height} x {width} pixels, expected multiples of {scale}")
    return _tiled(encode, video, tile, stride, scale_in=scale, scale_out=1)


def decode_tiled(
    params: PyTree,
    latents: Float[Array, "b lf lh lw z"],
    config: WanVAEConfig,
    *,
    tile: int = TILE,
    stride: int = STRIDE,
) -> Float[Array, "b f h w c"]:
    """`decode_clip` in overlapping tiles; the arguments and the rest as of `encode_tiled`."""

    def decode(part: Array) -> Array:
        return decode_unclipped(params, part, config)

    video = _tiled(decode, latents, tile, stride, scale_in=1, scale_out=config.spatial_stride)
    return jnp.clip(video, -1, 1)


def encode_frames_sharded(
    params: PyTree,
    video: Float[Array, "b f h w c"],
    config: WanVAEConfig,
    mesh: Mesh,
    *,
    axis: str,
    at_once: int | None = 1,
) -> Float[Array, "b f lh lw z"]:
    """`encode_frames` with every device of a mesh axis taking its share of the frames.

    Frames are independent, so no device waits for another and the result is the same.

    Args:
        params: of `WanVAE(config)`, whole on every device.
        video: in [-1, 1]; any number of frames.
        config: sizes.
        mesh: the devices.
        axis: name of its axis that the frames are spread over.
        at_once: frames that a device computes together.
    """

    def encode(params: PyTree, frames: Array) -> Array:
        return encode_frames(params, frames, config, at_once=at_once)

    return _spread_frames(encode, params, video, mesh, axis)


def decode_frames_sharded(
    params: PyTree,
    latents: Float[Array, "b f lh lw z"],
    config: WanVAEConfig,
    mesh: Mesh,
    *,
    axis: str,
    at_once: int | None = 1,
) -> Float[Array, "b f h w c"]:
    """`decode_frames` spread over devices; the arguments as of `encode_frames_sharded`."""

    def decode(params: PyTree, frames: Array) -> Array:
        return decode_frames(params, frames, config, at_once=at_once)

    return _spread_frames(decode, params, latents, mesh, axis)


def _spread_frames(
    run: Callable[[PyTree, Array], Array],
    params: PyTree,
    frames: Float[Array, "b f h w c"],
    mesh: Mesh,
    axis: str,
) -> Float[Array, "b f ho wo co"]:
    b, f = frames.shape[:2]
    alone = frames.reshape(1, b * f, *frames.shape[2:])
    # The last device's share is filled up with frames that are thrown away.
    missing = -(b * f) % mesh.shape[axis]
    alone = jnp.pad(alone, [(0, missing if i == 1 else 0) for i in range(alone.ndim)])
    by_frame = PartitionSpec(None, axis)
    spread = jax.shard_map(
        run, mesh=mesh, in_specs=(PartitionSpec(), by_frame), out_specs=by_frame, check_vma=False
    )
    out = spread(params, alone)
    return out[:, : b * f].reshape(b, f, *out.shape[2:])


def _tiled(
    run: Callable[[Array], Array],
    x: Float[Array, "b f h w c"],
    tile: int,
    stride: int,
    *,
    scale_in: int,
    scale_out: int,
) -> Float[Array, "b fo ho wo co"]:
    """A function of clips in tiles; sizes in latent pixels, times the scale in and out."""
    if not 1 <= stride <= tile:
        raise InputError(f"stride is {stride}, expected 1 to the tile's {tile}")
    rows, columns = (size // scale_in for size in x.shape[2:4])
    if rows <= tile and columns <= tile:
        return run(x)
    overlap, step = (tile - stride) * scale_out, stride * scale_out
    above: list[Array] = []
    strips = []
    for top in range(0, rows, stride):
        row: list[Array] = []
        for j, left in enumerate(range(0, columns, stride)):
            part = x[
                :,
                :,
                top * scale_in : (top + tile) * scale_in,
                left * scale_in : (left + tile) * scale_in,
            ]
            out = run(part)
            if above:
                out = _blend(above[j], out, overlap, axis=2)
            if row:
                out = _blend(row[-1], out, overlap, axis=3)
            # The blended tile, as the official code keeps it for its neighbours.
            row.append(out)
        strips.append(jnp.concatenate([out[:, :, :step, :step] for out in row], axis=3))
        above = row
    whole = jnp.concatenate(strips, axis=2)
    return whole[:, :, : rows * scale_out, : columns * scale_out]


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
