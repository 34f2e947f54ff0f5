"""A joint sequence in two attentions: its last part to itself densely, and the rest under a mask.

Under the correspondence pattern the target, which comes last, sees itself densely. Where a vendor's
dense kernel is faster than a masked one, that part is the vendor's, and the two are merged by their
LSE into one softmax. Where ours is as fast in tiles that need no mask, as on TPUs by the static
schedule, one call of `block_sparse_attention` under the whole mask does less.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from pallas_kernels.api import block_sparse_attention, merge_attention
from pallas_kernels.block_mask import BlockMask
from pallas_kernels.packing import pack_partial_tiles, pack_soft_tiles
from pallas_kernels.patterns import dense_pattern, frame_pattern
from pallas_kernels.target_device import target_of

__all__ = ["attend_with_dense_tail", "without_dense_tail"]

_CUDNN_CAPABILITY = (8, 0)


@functools.partial(jax.jit, static_argnames=("start", "capacity"))
def without_dense_tail(mask: BlockMask, *, start: int, capacity: int | None = None) -> BlockMask:
    """The mask of a joint sequence without the pairs of queries and keys both from `start` on.

    Its partial tiles are packed, with room for `capacity` of them (see `pack_partial_tiles`): made
    once for all layers.
    """
    query, key = (jnp.arange(n)[None] >= start for n in (mask.q_len, mask.k_len))
    table = jnp.array([[[True, True], [True, False]]])
    rest = mask & frame_pattern(
        query.astype(jnp.int32), key.astype(jnp.int32), table,
        tile_q=mask.tile_q, tile_k=mask.tile_k,
    )  # fmt: skip
    pack = pack_soft_tiles if mask.soft else pack_partial_tiles
    return pack(rest, capacity=capacity)


def attend_with_dense_tail(
    q: Float[Array, "b t heads d"],
    k: Float[Array, "b t heads d"],
    v: Float[Array, "b t heads d"],
    rest: BlockMask,
    *,
    start: int,
    implementation: str | None = None,
) -> Float[Array, "b t heads d"]:
    """Attention under `rest` and, from token `start` on, to each other densely; one softmax.

    Forward only where the dense part is cuDNN's (16-bit operands on an NVIDIA GPU from Ampere on):
    its LSE has no gradient. Elsewhere the dense part is ours.

    rest: what `without_dense_tail` leaves of the mask. implementation: as in
    `block_sparse_attention`, for the part under the mask.
    """
    out, lse = block_sparse_attention(
        q, k, v, rest, implementation=implementation, return_lse=True
    )  # fmt: skip
    tail = _dense(*(x[:, start:] for x in (q, k, v)))
    merged, _ = merge_attention((out[:, start:], lse[:, start:]), tail)
    return jnp.concatenate([out[:, :start], merged], axis=1)


def _dense(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    target = target_of(q)
    sixteen_bits = q.dtype in (jnp.bfloat16, jnp.float16)
    if sixteen_bits and (target.capability or (0, 0)) >= _CUDNN_CAPABILITY:
        found = jax.nn.dot_product_attention(q, k, v, implementation="cudnn", return_residual=True)
    else:
        everything = dense_pattern(q.shape[1], k.shape[1])
        found = block_sparse_attention(q, k, v, everything, return_lse=True)
    out, lse = found
    return out, lse.astype(jnp.float32)
