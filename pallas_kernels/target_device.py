"""The device that a program is made for, which need not be the one at hand.

Kernels are chosen while a program is traced. A program that is compiled for chips elsewhere says
so by the mesh of its operands, by `jax.set_mesh`, or by running inside `jax.shard_map`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.core import Tracer

__all__ = ["Target", "target_of"]

# Compute capability of NVIDIA's devices by what their names hold, where only the name is known.
_CAPABILITY = {
    "H100": (9, 0),
    "H200": (9, 0),
    "H800": (9, 0),
    "GH200": (9, 0),
    "A100": (8, 0),
    "A800": (8, 0),
    "L40": (8, 9),
    "B200": (10, 0),
}


class Target(NamedTuple):
    """A kind of device.

    platform    "cpu", "tpu" or "gpu".
    kind        what jax calls it, such as "TPU v5 lite" or "NVIDIA H200".
    capability  compute capability of an NVIDIA GPU (major, minor); None of others, and where
                neither the device nor its name tells.
    """

    platform: str
    kind: str
    capability: tuple[int, int] | None


def target_of(*operands: Any) -> Target:
    """The device that a program over these operands is made for.

    operands: arrays, tracers, `jax.ShapeDtypeStruct` or meshes. The first that is or stands on a
    mesh or a device decides; without any, the mesh in context, and at last jax's default device.
    """
    for device in _devices(operands):
        if device is not None:
            return _describe(device)
    return _describe(jax.devices()[0])


def _devices(operands: tuple[Any, ...]) -> Iterator[Any]:
    context = jax.sharding.get_abstract_mesh()
    # Inside shard_map that mesh is the operands' too.
    for operand in operands:
        if isinstance(operand, jax.sharding.Mesh):
            yield operand.abstract_mesh.abstract_device
            continue
        if isinstance(operand, Tracer):
            yield jax.typeof(operand).sharding.mesh.abstract_device
            continue
        sharding = getattr(operand, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding):
            yield sharding.mesh.abstract_mesh.abstract_device
        elif sharding is not None:
            yield next(iter(sharding.device_set))
    yield context.abstract_device


def _describe(device: Any) -> Target:
    platform = "gpu" if device.platform in ("gpu", "cuda") else device.platform
    kind, capability = device.device_kind, None
    if platform == "gpu":
        major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
        if major.isdigit() and minor.isdigit():
            capability = int(major), int(minor)
        else:
            named = (found for name, found in _CAPABILITY.items() if name in kind)
            capability = next(named, None)
    return Target(platform, kind, capability)
