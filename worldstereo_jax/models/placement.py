"""Where a model's parameters go on the devices of a mesh, by their paths and shapes."""

import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import (
    AbstractMesh,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from worldstereo_jax.models.layers import ADAPTER, DOWN

Placement = Callable[[str, tuple[int, ...]], Sharding]
"""Where a parameter goes, from its path and shape."""


def axis_size(mesh: Mesh | AbstractMesh, axis: str | tuple[str, ...] | None) -> int:
    """Devices along an axis of a mesh, or along several together; 1 for None."""
    if axis is None:
        return 1
    return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis))


def one_device(path: str, shape: tuple[int, ...]) -> Sharding:
    """Everything on the default device."""
    del path, shape
    return SingleDeviceSharding(jax.devices()[0])


def lay_out(value: np.ndarray, sharding: Sharding) -> jax.Array:
    """An array that every host has as one that lies on all their devices; each gives its part.

    `jax.device_put` compares the array between hosts first, which takes the network for every one,
    and all hosts to come in the same order.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def bytes_per_device(
    shapes: Mapping[str, tuple[int, ...]], itemsize: int, placement: Placement
) -> int:
    """Bytes that a device holds of parameters, from their shapes by path."""
    shards = (placement(path, shape).shard_shape(shape) for path, shape in shapes.items())
    return itemsize * sum(math.prod(shard) for shard in shards)


def split_widest_axis(mesh: Mesh, axis: str) -> Placement:
    """Split every matrix over one mesh axis, along its widest axis that divides evenly.

    Vectors, and arrays that do not divide, are on all devices. The leading axis of a stack of
    layers is never split.
    """
    count = mesh.shape[axis]

    def place(path: str, shape: tuple[int, ...]) -> Sharding:
        first = 1 if "layers/" in path else 0
        sizes = {i: shape[i] for i in range(first, len(shape)) if shape[i] % count == 0}
        spec: list[str | None] = [None] * len(shape)
        if len(shape) - first > 1 and sizes:
            spec[max(sizes, key=lambda i: sizes[i])] = axis
        return NamedSharding(mesh, PartitionSpec(*spec))

    return place


_GATHERING = ("out", "down")
"""Linear maps whose input is split where tensor parallelism splits the output of others."""


def tensor_parallel(mesh: Mesh, axis: str) -> Placement:
    """Split attention heads and hidden channels over one mesh axis.

    Linear maps into heads and hidden channels are split along their outputs, with their biases;
    those out of them along their inputs, so that a layer needs one sum over the axis for its
    attention and one for its feed-forward part. Of an adapter's two factors the one is split that
    touches a split axis: its rank never is. What does not divide evenly, and all else, is on all
    devices.
    """
    count = mesh.shape[axis]
    entering = ("query", "key", "value", "image_key", "image_value", "up", "gate")

    def place(path: str, shape: tuple[int, ...]) -> Sharding:
        # The factors of an adapter belong to the layer around it.
        *_, owner, kind = ("", *(name for name in path.split("/") if name != ADAPTER))
        spec: list[str | None] = [None] * len(shape)
        if owner in entering and kind != DOWN and shape[-1] % count == 0:
            spec[-1] = axis
        elif owner in _GATHERING and kind in ("kernel", DOWN) and shape[-2] % count == 0:
            spec[-2] = axis
        return NamedSharding(mesh, PartitionSpec(*spec))

    return place


def fully_sharded(mesh: Mesh, axis: str, within: Placement, smallest: int) -> Placement:
    """Split parameters over one more mesh axis than another placement does.

    So every device holds a share of each large array, and of all that an optimiser keeps about it,
    and XLA fetches a layer's arrays when the layer is computed (Rajbhandari et al. 2020, "ZeRO",
    stage 3).

    Args:
        mesh: the devices.
        axis: mesh axis that the placement does not use.
        within: the placement, over other axes of the same mesh.
        smallest: arrays of fewer elements, without the leading axis of a stack of layers, stay as
            they are, as do those of which no unused dimension divides.
    """
    count = mesh.shape[axis]

    def place(path: str, shape: tuple[int, ...]) -> Sharding:
        inner = within(path, shape)
        assert isinstance(inner, NamedSharding)
        first = 1 if "layers/" in path else 0
        spec: list = [*inner.spec, *[None] * (len(shape) - len(inner.spec))]
        sizes = {
            i: shape[i]
            for i in range(first, len(shape))
            if spec[i] is None and shape[i] % count == 0
        }
        if sizes and math.prod(shape[first:]) >= smallest:
            spec[max(sizes, key=lambda i: sizes[i])] = axis
        return NamedSharding(mesh, PartitionSpec(*spec))

    return place


def shared_axes(sharding: Sharding, shape: tuple[int, ...], other: tuple[int, ...]) -> Sharding:
    """A layout for an array of `shape`, for one of another shape: split along axes they share."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    if len(other) != len(shape):
        return NamedSharding(sharding.mesh, PartitionSpec())
    # A spec may end before the axes do.
    spec = (*sharding.spec, *[None] * len(shape))
    kept = [axis if n == m else None for axis, n, m in zip(spec, shape, other, strict=False)]
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))
