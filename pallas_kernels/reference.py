"""Dense float32 attention under a block mask: the specification of every backend."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from pallas_kernels.block_mask import BlockMask

__all__ = ["reference_attention"]


def reference_attention(
    q: Float[Array, "b tq heads d"],
    k: Float[Array, "b tk heads d"],
    v: Float[Array, "b tk heads dv"],
    mask: BlockMask,
    scale: float,
) -> tuple[Float[Array, "b tq heads dv"], Float[Array, "b tq heads"]]:
    """Softmax attention over the allowed keys, and its LSE, with a dense [tq, tk] mask.

    Computed in float32 at full precision; the output has q's dtype, the LSE is float32. A row with
    no allowed key gives zeros and an LSE of -inf, with zero gradient.
    """
    highest = lax.Precision.HIGHEST
    q32, k32, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q32, k32, precision=highest) * scale
    pairs = mask.dense_pairs()
    allowed = pairs.allowed
    if mask.strength is not None:
        bias = pairs.bias(mask.strength[:, :, None, None])
        allowed = allowed & (bias > -jnp.inf)
        logits = logits + jnp.where(allowed, bias, 0.0)
    logits = jnp.where(allowed, logits, -jnp.inf)
    top = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf))
    # A row of -inf would otherwise become NaN by -inf - -inf.
    weights = jnp.exp(logits - jnp.where(top > -jnp.inf, top, 0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights / total, v32, precision=highest)
    lse = jnp.where(some, jnp.where(some, top, 0.0) + jnp.log(total), -jnp.inf)
    return out.astype(q.dtype), jnp.swapaxes(lse[..., 0], 1, 2)
