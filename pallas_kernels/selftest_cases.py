"""Attention problems with masks of every kind, and a backend's comparison with the reference."""

import dataclasses
import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pallas_kernels.api import block_sparse_attention
from pallas_kernels.block_mask import BlockMask
from pallas_kernels.correspondence_mask import from_geometry, joint_correspondence
from pallas_kernels.geometry import CorrespondenceRule, TokenGeometry, make_token_geometry
from pallas_kernels.patterns import frame_pattern, from_dense, sliding_window

__all__ = [
    "CASES",
    "QUICK",
    "Problem",
    "compare",
    "make_problem",
    "random_geometry",
    "reference_results",
]

TILE_Q, TILE_K = 16, 32


class Problem(typing.NamedTuple):
    """Operands [b, t, heads, d] of one attention, its mask, and cotangents of its two results."""

    q: Array
    k: Array
    v: Array
    mask: BlockMask
    d_out: Array
    d_lse: Array


def _put(values: np.ndarray, dtype: typing.Any) -> Array:
    """The values on the device; `jnp.asarray` would compile a program for every shape."""
    return jax.device_put(values.astype(dtype))


def random_geometry(
    rng: np.random.Generator, batch: int, tokens: int, frames: int, *, radius: float = 0.25
) -> TokenGeometry:
    """Tokens on a plane patch in the unit cube with every field in use, some of them unknown."""
    position = rng.random((batch, tokens, 3)) * [1.0, 1.0, 0.3]
    normal = rng.normal(size=(batch, tokens, 3)) + np.array([0.0, 0.0, 2.0])
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normal[rng.random((batch, tokens)) < 0.1] = 0.0
    seen = rng.random((batch, tokens, 32)) < 0.9
    words = np.packbits(seen, axis=-1, bitorder="little").view("<u4")
    frame = np.broadcast_to(np.arange(tokens) * frames // tokens, (batch, tokens))
    return make_token_geometry(
        _put(position, np.float32),
        radius=_put(radius * rng.uniform(0.5, 1.5, (batch, tokens)), np.float32),
        normal=_put(normal, np.float32),
        log_weight=_put(-rng.random((batch, tokens)), np.float32),
        segment=_put(np.where(rng.random((batch, tokens)) < 0.1, -1, 0), np.int32),
        frame=_put(frame, np.int32),
        visibility=_put(words, np.uint32),
        valid=_put(rng.random((batch, tokens)) < 0.9, bool),
    )


def _booleans(rng: np.random.Generator, kind: str, b: int, tq: int, tk: int) -> np.ndarray:
    if kind == "empty":
        return np.zeros((b, tq, tk), bool)
    if kind == "full":
        return np.ones((b, tq, tk), bool)
    mask = np.zeros((b, tq, tk), bool)
    if kind == "one_tile":
        mask[:, TILE_Q : 2 * TILE_Q, TILE_K : 2 * TILE_K] = True
        return mask
    if kind == "block_diagonal":
        group = np.arange(tq) * 4 // tq, np.arange(tk) * 4 // tk
        return np.broadcast_to(group[0][:, None] == group[1][None], mask.shape).copy()
    mask = rng.random((b, tq, tk)) < 0.3
    # Of every kind: empty and full tiles, and rows and keys that nothing is allowed for.
    mask[:, :TILE_Q, : 2 * TILE_K] = False
    mask[:, TILE_Q : 2 * TILE_Q, TILE_K : 2 * TILE_K] = True
    mask[0, 3] = False
    mask[-1, :, 5] = False
    return mask


def _mask(rng: np.random.Generator, kind: str, b: int, heads: int, tq: int, tk: int) -> BlockMask:
    sizes = {"tile_q": TILE_Q, "tile_k": TILE_K}
    if kind == "per_head":
        each = [_booleans(rng, "random", b, tq, tk) for _ in range(heads)]
        return from_dense(_put(np.stack(each, axis=1), bool), TILE_Q, TILE_K)
    if kind == "window":
        return sliding_window(tq, tk, before=20, after=9, offset=11, **sizes)
    if kind == "frames":
        frames = [np.sort(rng.integers(-1, 4, (b, t)), axis=1) for t in (tq, tk)]
        table = _put(rng.random((b, 4, 4)) < 0.5, bool)
        query, key = (_put(x, np.int32) for x in frames)
        return frame_pattern(query, key, table, **sizes)
    # Compiled as a whole: much faster to start than operation by operation.
    if kind in ("geometry", "soft", "tiles"):
        query, key = random_geometry(rng, b, tq, 3), random_geometry(rng, b, tk, 2)
        strength = _put(rng.uniform(0.3, 2.0, heads), np.float32)
        extra = {"strength": strength} if kind == "soft" else {}
        granularity = "tile" if kind == "tiles" else "token"
        rule = CorrespondenceRule(field="either" if kind == "geometry" else "target")
        build = functools.partial(from_geometry, rule=rule, granularity=granularity, **sizes)
        return jax.jit(build)(query, key, **extra)
    if kind in ("joint", "joint_soft"):
        reference, target = random_geometry(rng, b, 32, 2), random_geometry(rng, b, tq - 32, 3)
        extra = {"strength": np.float32(0.7)} if kind == "joint_soft" else {}
        field = "either" if kind == "joint_soft" else "target"
        rule = CorrespondenceRule(reach=1.5, field=field)
        build = functools.partial(joint_correspondence, rule=rule, **sizes)
        return jax.jit(build)(reference, target, **extra)
    return from_dense(_put(_booleans(rng, kind, b, tq, tk), bool), TILE_Q, TILE_K)


QUICK = ("random", "empty", "full", "one_tile", "block_diagonal", "per_head", "soft", "joint")
CASES = (*QUICK, "window", "frames", "geometry", "tiles", "joint_soft")


def make_problem(
    kind: str,
    *,
    seed: int = 0,
    batch: int = 2,
    heads: int = 2,
    q_len: int = 70,
    k_len: int = 101,
    head_dim: int = 64,
    dtype: typing.Any = jnp.float32,
) -> Problem:
    """A random problem with a mask of the given kind, one of CASES; ragged in both lengths.

    The joint kinds have as many keys as queries. Raises ValueError for another kind.
    """
    if kind not in CASES:
        raise ValueError(f"kind must be one of {CASES}, got {kind!r}")
    rng = np.random.default_rng(seed)
    if kind.startswith("joint"):
        k_len = q_len

    def normal(*shape):
        return _put(rng.normal(size=shape), jnp.dtype(dtype))

    q, k, v = (normal(batch, t, heads, head_dim) for t in (q_len, k_len, k_len))
    mask = _mask(rng, kind, batch, heads, q_len, k_len)
    d_lse = _put(_exact(normal(batch, q_len, heads)), np.float32)
    return Problem(q, k, v, mask, normal(batch, q_len, heads, head_dim), d_lse)


@functools.partial(jax.jit, static_argnames=("attend",))
def _run(attend: Callable[..., typing.Any], problem: Problem) -> dict[str, Array]:
    q, k, v, mask, d_out, d_lse = problem
    strength = mask.strength

    def results(q, k, v, strength):
        changed = dataclasses.replace(mask, strength=strength)
        return attend(q, k, v, changed, return_lse=True)

    (out, lse), pull = jax.vjp(results, q, k, v, strength)
    dq, dk, dv, d_strength = pull((out * 0 + d_out, d_lse))
    found = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
    return found if strength is None else found | {"d_strength": d_strength}


@functools.cache
def _attention(implementation: str) -> Callable[..., typing.Any]:
    return functools.partial(block_sparse_attention, implementation=implementation)


def _exact(x: Array) -> np.ndarray:
    return np.asarray(x).astype(np.float32)


def reference_results(problem: Problem) -> dict[str, np.ndarray]:
    """What `compare` compares with, from the reference in float32."""
    exact = problem._replace(
        **{name: _exact(getattr(problem, name)) for name in ("q", "k", "v", "d_out")}
    )
    return {name: np.asarray(x) for name, x in _run(_attention("reference"), exact).items()}


def compare(
    implementation: str | Callable[..., typing.Any],
    problem: Problem,
    wanted: dict[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """Largest error of each result against the float32 reference, relative to its size.

    implementation: a name, or a function that takes what `block_sparse_attention` does.
    wanted: what `reference_results` gives for the problem, when it is known already.

    Results: out, lse, dq, dk, dv, and d_strength for a soft mask. The error is divided by the
    largest value of the reference (or 1). Infinity where a NaN appears, an infinite LSE stands in
    another place, or a query without keys has an output or gradient that is not exactly zero.
    """
    attend = _attention(implementation) if isinstance(implementation, str) else implementation
    found = _run(attend, problem)
    wanted = reference_results(problem) if wanted is None else wanted
    lost = np.isneginf(wanted["lse"])
    errors = {}
    for name, want in wanted.items():
        got = _exact(found[name])
        if name in ("out", "dq", "lse"):
            zero = np.isneginf(got[lost]) if name == "lse" else got[lost] == 0
            if not zero.all():
                errors[name] = np.inf
                continue
            got, want = got[~lost], want[~lost]
        bad = not np.isfinite(got).all()
        size = max(1.0, float(np.abs(want).max(initial=0.0)))
        errors[name] = np.inf if bad else float(np.abs(got - want).max(initial=0.0)) / size
    return errors
