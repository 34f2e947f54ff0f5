"""The causal autoencoder within bounded memory: in overlapping tiles, or spread over devices."""

import functools
import itertools
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
    mesh: Mesh | None = None,
    axis: str | None = None,
) -> Float[Array, "b lf lh lw z"]:
    """`encode_clip` in overlapping tiles, their latents blended linearly where they overlap.

    Beside the result, memory holds one tile at a time and what the tiles have come to. Attention
    and convolutions see a tile only, so the result differs slightly from the whole; equal to the
    official tiling of the same sizes. A clip that fits into one tile is encoded whole. Samples are
    computed one after the other, too: frames that are clips of their own go along `b`.

    Args:
        params: of `WanVAE(config)`; with a mesh whole on every device.
        video: in [-1, 1].
        config: sizes.
        tile: rows and columns of a tile in latent pixels.
        stride: latent pixels from one tile to the next, at most `tile`.
        mesh: devices that share the tiles of all samples; None for no sharing. The result is the
            same.
        axis: name of the mesh's axis that tiles are spread over; not read without a mesh.

    Raises:
        InputError: when the stride does not lie in 1 .. tile, the mesh has no such axis, and as
            `encode_clip` does.
    """
    scale = config.spatial_stride

    def encode(params: PyTree, part: Array) -> Array:
        return encode_clip(params, part, config)

    height, width = video.shape[2:4]
    if height % scale or width % scale:
        raise InputError(f"video has {height} x {width} pixels, expected multiples of {scale}")
    run = _one_by_one(encode, params, video, mesh, axis)
    return _tiled(run, video, tile, stride, scale_in=scale, scale_out=1)


def decode_tiled(
    params: PyTree,
    latents: Float[Array, "b lf lh lw z"],
    config: WanVAEConfig,
    *,
    tile: int = TILE,
    stride: int = STRIDE,
    mesh: Mesh | None = None,
    axis: str | None = None,
) -> Float[Array, "b f h w c"]:
    """`decode_clip` in overlapping tiles; the arguments and the rest as of `encode_tiled`."""

    def decode(params: PyTree, part: Array) -> Array:
        return decode_unclipped(params, part, config)

    run = _one_by_one(decode, params, latents, mesh, axis)
    video = _tiled(run, latents, tile, stride, scale_in=1, scale_out=config.spatial_stride)
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


_Run = Callable[[np.ndarray, tuple[int, int]], Float[Array, "n f h w c"]]
"""Outputs for parts of one size: their corners [n, 3] (sample, row, column), and that size."""


def _one_by_one(
    run: Callable[[PyTree, Array], Array],
    params: PyTree,
    x: Float[Array, "b f h w c"],
    mesh: Mesh | None,
    axis: str | None,
) -> _Run:
    """A function of clips on parts of one size in a loop, or in one loop per device.

    A loop holds the function once, however many parts, and runs it in the memory of one.
    """

    def over(params: PyTree, x: Array, corners: Array, size: tuple[int, int]) -> Array:
        def part(corner: Array) -> Array:
            sample, row, column = corner
            first = jnp.zeros_like(row)
            start, sizes = (sample, first, row, column, first), (1, x.shape[1], *size, x.shape[4])
            return run(params, jax.lax.dynamic_slice(x, start, sizes))[0]

        return jax.lax.map(part, corners)

    def spread(corners: np.ndarray, size: tuple[int, int]) -> Array:
        if mesh is None:
            return over(params, x, jnp.asarray(corners), size)
        if axis not in mesh.shape:
            axes = ", ".join(mesh.shape)
            raise InputError(f"axis is {axis!r}, expected one of the mesh's: {axes}")
        # The last device's share is filled up with a part that is thrown away.
        missing = -len(corners) % mesh.shape[axis]
        filled = np.concatenate([corners, np.repeat(corners[-1:], missing, axis=0)])
        whole, shared = PartitionSpec(), PartitionSpec(axis)
        mapped = jax.shard_map(
            functools.partial(over, size=size), mesh=mesh, in_specs=(whole, whole, shared),
            out_specs=shared, check_vma=False,
        )  # fmt: skip
        return mapped(params, x, jnp.asarray(filled))[: len(corners)]

    return spread


def _tiled(
    run: _Run,
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
    samples = x.shape[0]
    rows, columns = (size // scale_in for size in x.shape[2:4])
    fits = rows <= tile and columns <= tile
    tops = range(1) if fits else range(0, rows, stride)
    lefts = range(1) if fits else range(0, columns, stride)
    # Tiles at the far edges are cut off, so there are few sizes; those of one share a program.
    by_size: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for place in itertools.product(tops, lefts):
        size = min(tile, rows - place[0]), min(tile, columns - place[1])
        by_size.setdefault(size, []).append(place)
    outputs = {}
    for (height, width), places in by_size.items():
        corners = np.array([(n, *place) for place in places for n in range(samples)], np.int32)
        out = run(corners * (1, scale_in, scale_in), (height * scale_in, width * scale_in))
        for i, place in enumerate(places):
            outputs[place] = out[i * samples : (i + 1) * samples]

    overlap, step = (tile - stride) * scale_out, stride * scale_out
    above: list[Array] = []
    strips = []
    for top in tops:
        row: list[Array] = []
        for j, left in enumerate(lefts):
            out = outputs[top, left]
            if above:
                out = _blend(above[j], out, overlap, axis=2)
            if row:
                out = _blend(row[-1], out, overlap, axis=3)
            # The blended tile, as the official code keeps it for its neighbours.
            row.append(out)
        # A single tile is not cut.
        cut = (slice(None),) * 2 + (slice(None if fits else step),) * 2
        strips.append(jnp.concatenate([out[cut] for out in row], axis=3))
        above = row
    return jnp.concatenate(strips, axis=2)


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
