"""Devices that are not here, to ask what would run on them."""

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec

TPU, HOPPER, AMPERE = ("tpu", "TPU v5 lite"), ("gpu", "NVIDIA H200"), ("gpu", "NVIDIA A100-SXM4")


def mesh_of(device: tuple[str, str]) -> AbstractMesh:
    """A mesh of one device, by platform and kind."""
    platform, kind = device
    described = AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    return AbstractMesh((1,), ("x",), abstract_device=described)


def tokens_on(device: tuple[str, str], tokens: int, dtype=jnp.bfloat16, head_dim: int = 64):
    """Queries [1, tokens, 2, head_dim] that stand on the device, without values."""
    place = NamedSharding(mesh_of(device), PartitionSpec())
    return jax.ShapeDtypeStruct((1, tokens, 2, head_dim), dtype, sharding=place)
