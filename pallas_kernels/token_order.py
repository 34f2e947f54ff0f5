"""Order of tokens along a space-filling curve in the world.

Tokens of all frames that look at one place become neighbours, so that tiles of them meet few tiles
of the other side. The order is applied once at the transformer's entry and undone at its exit.
"""

import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Shaped, UInt32

from pallas_kernels.geometry import TokenGeometry

__all__ = [
    "CURVES",
    "TokenOrder",
    "bounding_box",
    "hilbert_code",
    "morton_code",
    "order_geometry",
    "order_tokens",
]

CURVES = ("hilbert", "morton")
_BITS = 10  # per axis: 30 bits in all, one sort key


@flax.struct.dataclass
@typing.no_type_check
class TokenOrder:
    """A permutation of tokens per sample, and its inverse.

    forward  int32 [b, t]: forward[i] is the original place of the token that comes i-th.
    inverse  int32 [b, t]: inverse[j] is where the j-th original token went.
    """

    forward: Int[Array, "b t"]
    inverse: Int[Array, "b t"]

    def apply(self, x: Shaped[Array, "b t *rest"]) -> Shaped[Array, "b t *rest"]:
        """Bring tokens [b, t, ...] into this order."""
        return _gather(x, self.forward)

    def undo(self, x: Shaped[Array, "b t *rest"]) -> Shaped[Array, "b t *rest"]:
        """Bring ordered tokens [b, t, ...] back."""
        return _gather(x, self.inverse)


@jax.jit
def _gather(x: Array, index: Array) -> Array:
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def bounding_box(*geometries: TokenGeometry) -> Float[Array, "b 2 3"]:
    """Lowest and highest corner of all valid tokens, world units; zeros when there are none."""
    low, high = [], []
    for geometry in geometries:
        valid = geometry.valid[..., None]
        low.append(jnp.min(jnp.where(valid, geometry.position, jnp.inf), axis=1))
        high.append(jnp.max(jnp.where(valid, geometry.position, -jnp.inf), axis=1))
    corners = jnp.stack([jnp.min(jnp.stack(low), axis=0), jnp.max(jnp.stack(high), axis=0)], axis=1)
    return jnp.where(jnp.isfinite(corners), corners, 0.0)


def _spread_bits(x: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """Put two zero bits between the lowest ten bits of x."""
    for shift, keep in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        x = (x | (x << shift)) & jnp.uint32(keep)
    return x


def morton_code(cell: UInt32[Array, "*n 3"]) -> UInt32[Array, "*n"]:
    """Place on the Morton (Z) curve of cells with 10 bits per axis."""
    x, y, z = (_spread_bits(cell[..., i]) for i in range(3))
    return (x << 2) | (y << 1) | z


def hilbert_code(cell: UInt32[Array, "*n 3"]) -> UInt32[Array, "*n"]:
    """Place on the Hilbert curve of cells with 10 bits per axis.

    Skilling, "Programming the Hilbert curve" (AIP Conf. Proc. 707, 2004): from the top bit down
    the lower bits are reflected or exchanged with those of the first axis, then the axes are
    Gray-coded; interleaving the result gives the place. Successive cells share a face.
    """
    axes = [cell[..., i] for i in range(3)]
    for level in range(_BITS - 1, 0, -1):
        bit = jnp.uint32(1 << level)
        below = bit - jnp.uint32(1)
        for i in range(3):
            inverted = (axes[i] & bit) != 0
            swap = (axes[0] ^ axes[i]) & below
            first = jnp.where(inverted, axes[0] ^ below, axes[0] ^ swap)
            axes[i] = jnp.where(inverted, axes[i], axes[i] ^ swap) if i else first
            axes[0] = first
    for i in range(1, 3):
        axes[i] = axes[i] ^ axes[i - 1]
    flips = jnp.zeros_like(axes[0])
    for level in range(_BITS - 1, 0, -1):
        bit = jnp.uint32(1 << level)
        flips = jnp.where((axes[2] & bit) != 0, flips ^ (bit - jnp.uint32(1)), flips)
    return morton_code(jnp.stack([axis ^ flips for axis in axes], axis=-1))


@functools.partial(jax.jit, static_argnames="curve")
def order_tokens(
    geometry: TokenGeometry,
    *,
    box: Float[Array, "b 2 3"] | None = None,
    curve: str = "hilbert",
    major: Int[Array, "b t"] | None = None,
) -> TokenOrder:
    """Sort the tokens of a sequence along a curve through the world.

    `box` (see `bounding_box`) is cut into 1024^3 cells; give the same box to sequences that shall
    meet. `major` [b, t] sorts by that first, e.g. `geometry.frame` to keep frames together. Tokens
    without geometry come last (within their major), in their old order; so do equal cells.
    Raises ValueError for an unknown curve.
    """
    if curve not in CURVES:
        raise ValueError(f"curve must be one of {CURVES}, got {curve!r}")
    box = bounding_box(geometry) if box is None else box
    low, high = box[:, None, 0], box[:, None, 1]
    # One scale for all axes: cells are cubes, so that distance means the same along each.
    side = jnp.maximum(jnp.max(high - low, axis=-1, keepdims=True), 1e-30)
    cell = jnp.floor((geometry.position - low) / side * (1 << _BITS))
    cell = jnp.clip(jnp.where(jnp.isfinite(cell), cell, 0.0), 0, (1 << _BITS) - 1)
    encode = hilbert_code if curve == "hilbert" else morton_code
    code = encode(cell.astype(jnp.uint32)).astype(jnp.int32)
    code = jnp.where(geometry.valid, code, jnp.iinfo(jnp.int32).max)
    forward = jnp.argsort(code, axis=1, stable=True)
    if major is not None:
        within = jnp.argsort(jnp.take_along_axis(major, forward, axis=1), axis=1, stable=True)
        forward = jnp.take_along_axis(forward, within, axis=1)
    return TokenOrder(forward.astype(jnp.int32), jnp.argsort(forward, axis=1).astype(jnp.int32))


def order_geometry(geometry: TokenGeometry, order: TokenOrder) -> TokenGeometry:
    """The geometry of the tokens in the given order."""
    return TokenGeometry(
        **{
            name: order.apply(getattr(geometry, name))
            for name in TokenGeometry.__dataclass_fields__
        }
    )
