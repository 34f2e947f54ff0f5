"""How exactly the official pipeline's stages multiply, whatever the device would do by itself.

Accelerators round the factors of float32 products unless told otherwise: a TPU to bfloat16, of 8
bits, NVIDIA GPUs to TF32, of 11. "highest" is float32 on both. "high" has at least the 11 bits in
which PyTorch convolves on a GPU by default; on a TPU it takes three products of bfloat16. On a CPU
all are the same.
"""

import functools
import typing
from collections.abc import Callable

import jax

EXACT = "highest"


def transformer_precision(dtype: str) -> str | None:
    """Of a transformer that computes in `dtype`: exact in float32; else the device's own way."""
    return EXACT if dtype == "float32" else None


def autoencoder_precision(dtype: str) -> str:
    """Of the autoencoder beside a transformer of `dtype`, both of float32 arrays.

    Exact beside an exact one; else "high": as good as the official autoencoder on a GPU, at half
    the products of an exact one on a TPU.
    """
    return EXACT if dtype == "float32" else "high"


def jit_at(precision: str | None, function: Callable[..., typing.Any]) -> Callable[..., typing.Any]:
    """`jax.jit` of a pure function whose float32 products get this precision.

    Products that ask for one of their own keep it. Nothing outside of the function changes.

    Args:
        precision: of `jax.default_matmul_precision`; None for the one in force.
        function: traced under it.
    """
    if precision is None:
        return jax.jit(function)

    @functools.wraps(function)
    def run(*arguments: typing.Any) -> typing.Any:
        with jax.default_matmul_precision(precision):
            return function(*arguments)

    return jax.jit(run)
