"""A soft constraint's partial tiles as numbers: two of 16 bits to a pair of tokens.

Attraction is never positive and penalty never negative, so both are kept without a sign: 5 bits of
exponent and 11 of mantissa, a relative error of 2^-12, 0 below 2^-14. They are bits 12 to 27 of the
float32 whose exponent is smaller by 112, so that a kernel decodes them with a shift and a sum, or a
product.
"""

import typing

import flax.struct
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from pallas_kernels.fills import TileIndex, shared_axis
from pallas_kernels.geometry import Pairs

__all__ = [
    "EXCLUDED_CODE",
    "EXCLUDED_PAIR",
    "SoftFill",
    "decode",
    "decode_scaled",
    "encode_pairs",
]

EXCLUDED_CODE = 0xFFFF  # of an attraction: the pair is not in the mask
EXCLUDED_PAIR = EXCLUDED_CODE  # and no penalty
_EXPONENT = 112 << 23
_SCALE, _CODE_BITS = 2.0**112, 0xFFFF << 12
_SMALLEST, _LARGEST = 2.0**-14, 60_000.0


@flax.struct.dataclass
@typing.no_type_check
class SoftFill:
    """Numbers of the partial tiles only.

    pairs     int32 [b, heads, slots, tile_q, tile_k]: the attraction's code in the low 16 bits,
              the penalty's in the high ones.
    slot      int32 [b, heads, nq, nk]: where a tile pair's numbers are; -1: nothing is allowed.
    overflow  int32 [b, heads]: partial tiles that found no slot, and so lost their pairs.
    """

    pairs: Int[Array, "b heads slots tq tk"]
    slot: Int[Array, "b heads nq nk"]
    overflow: Int[Array, "b heads"]

    soft: typing.ClassVar[bool] = True

    def evaluate(self, index: TileIndex, tile_q: int, tile_k: int) -> Pairs:
        """Pairs of the listed tiles."""
        slot = index.take(self.slot)
        batch = shared_axis(index.batch, self.pairs, 0)[:, None]
        head = shared_axis(index.head, self.pairs, 1)[:, None]
        found = self.pairs[batch, head, jnp.maximum(slot, 0)]
        found = jnp.where((slot >= 0)[..., None, None], found, EXCLUDED_PAIR)
        attraction, penalty, allowed = decode(found)
        return Pairs(allowed, attraction, penalty)


def _encode(x: Float[Array, "*n"]) -> Int[Array, "*n"]:
    size = jnp.minimum(jnp.abs(x), _LARGEST)
    bits = lax.bitcast_convert_type(size.astype(jnp.float32), jnp.int32) - _EXPONENT
    return jnp.where(size < _SMALLEST, 0, (bits + (1 << 11)) >> 12)


def encode_pairs(pairs: Pairs) -> Int[Array, "*n tq tk"]:
    """The numbers of soft pairs, int32."""
    attraction, penalty = pairs.constraint()
    low = jnp.where(pairs.allowed, _encode(attraction), EXCLUDED_CODE)
    high = jnp.where(pairs.allowed, _encode(penalty), 0)
    return low | (high << 16)


def decode(pairs: Array) -> tuple[Array, Array, Array]:
    """Attraction and penalty, float32, and whether the pair is in the mask; in kernels too."""
    low = lax.bitwise_and(pairs, jnp.int32(0xFFFF))
    high = lax.shift_right_logical(pairs, jnp.int32(16))
    allowed = low != EXCLUDED_CODE
    return jnp.where(allowed, -_decode(low), 0.0), _decode(high), allowed


def decode_scaled(pairs: Array, excluded: float) -> tuple[Array, Array]:
    """Attraction, `excluded` where the pair is not in the mask, and penalty, in fewer operations.

    For results that are kept before anything multiplies them: the factor of 2^112, merged with an
    infinite strength, would make NaN of 0.
    """
    low = lax.bitwise_and(pairs, jnp.int32(0xFFFF))
    attraction = _scaled(lax.shift_left(low, jnp.int32(12)), -_SCALE)
    # The high code's shift down by 16 and up by 12, in one.
    high = lax.bitwise_and(lax.shift_right_logical(pairs, jnp.int32(4)), jnp.int32(_CODE_BITS))
    return jnp.where(low != EXCLUDED_CODE, attraction, excluded), _scaled(high, _SCALE)


def _decode(code: Array) -> Array:
    bits = lax.shift_left(code, jnp.int32(12)) + jnp.int32(_EXPONENT)
    return jnp.where(code > 0, lax.bitcast_convert_type(bits, jnp.float32), 0.0)


def _scaled(bits: Array, factor: float) -> Array:
    """A code at bits 12 to 27; there are none below 2^11 but 0, so that no number is subnormal."""
    return lax.bitcast_convert_type(bits, jnp.float32) * factor
