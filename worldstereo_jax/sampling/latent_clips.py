"""Clips through the official autoencoder, whole or in tiles that the devices of a mesh share."""

import jax.numpy as jnp
from jax.sharding import Mesh

from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.models.wan_vae import WanVAEConfig
from worldstereo_jax.models.wan_vae_clips import decode_clip, encode_clip
from worldstereo_jax.models.wan_vae_tiles import decode_tiled, encode_tiled
from worldstereo_jax.sampling.official_world import MODEL_AXIS


def tile_stride(tile: int) -> int:
    """Latent pixels from one tile to the next: three quarters of a tile, as officially."""
    return max(1, 3 * tile // 4)


def encode_clips(
    params: PyTree,
    clips: Float[Array, "b F h w 3"],
    vae: WanVAEConfig,
    *,
    tile: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "b f lh lw z"]:
    """Latents of clips whose frames follow each other.

    Args:
        params: of the autoencoder.
        clips: in [-1, 1].
        vae: sizes.
        tile: rows and columns of a tile in latent pixels; None encodes whole, on every device.
        mesh: devices that share the tiles.
    """
    if tile is None:
        return encode_clip(params, clips, vae)
    stride = tile_stride(tile)
    return encode_tiled(params, clips, vae, tile=tile, stride=stride, mesh=mesh, axis=MODEL_AXIS)


def decode_clips(
    params: PyTree,
    latents: Float[Array, "b f lh lw z"],
    vae: WanVAEConfig,
    *,
    tile: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "b F h w 3"]:
    """The inverse of `encode_clips`, with the same arguments."""
    if tile is None:
        return decode_clip(params, latents, vae)
    stride = tile_stride(tile)
    return decode_tiled(params, latents, vae, tile=tile, stride=stride, mesh=mesh, axis=MODEL_AXIS)


def first_frame_condition(latent: Float[Array, "f lh lw z"]) -> Float[Array, "f lh lw z_plus_4"]:
    """A condition latent as the transformer takes it, behind 4 mask channels: 1 on frame 0 only."""
    is_first = (jnp.arange(latent.shape[0]) == 0).astype(latent.dtype)
    mask = jnp.broadcast_to(is_first[:, None, None, None], (*latent.shape[:-1], 4))
    return jnp.concatenate([mask, latent], axis=-1)
