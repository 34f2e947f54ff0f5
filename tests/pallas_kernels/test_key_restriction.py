"""Keys that are not there leave every kind of mask, and what is packed stays packed."""

import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.fills import BitFill
from pallas_kernels.selftest_cases import make_problem
from pallas_kernels.soft_fill import SoftFill


def _mask(kind):
    if kind == "dense":
        return pk.dense_pattern(70, 101, tile_q=16, tile_k=32)
    mask = make_problem(kind.removesuffix("_packed"), heads=2).mask
    if not kind.endswith("_packed"):
        return mask
    return pk.pack_soft_tiles(mask) if mask.soft else pk.pack_partial_tiles(mask)


@pytest.mark.parametrize(
    "kind", ["dense", "per_head", "one_tile", "joint_packed", "joint_soft_packed", "soft", "window"]
)
def test_no_query_sees_a_key_that_is_not_valid(kind):
    mask = _mask(kind)
    # Of the key tiles: one wholly gone, one whole, the others cut.
    valid = np.ones((2, mask.k_len), bool)
    valid[0, :40] = False
    valid[1, [33, 64, mask.k_len - 1]] = False
    found = pk.restrict_keys(mask, jnp.asarray(valid))
    want = np.asarray(mask.dense()) & valid[:, None, None]
    np.testing.assert_array_equal(found.dense(), want)
    # Twice is once.
    np.testing.assert_array_equal(pk.restrict_keys(found, jnp.asarray(valid)).dense(), want)
    if mask.soft:
        kept = want
        for a, b in zip(
            found.dense_pairs().constraint(), mask.dense_pairs().constraint(), strict=True
        ):
            np.testing.assert_array_equal(np.where(kept, a, 0), np.where(kept, b, 0))
    if kind in ("dense", "per_head", "one_tile") or kind.endswith("_packed"):
        assert isinstance(found.fill, SoftFill if mask.soft else BitFill)
        # No more room than a slot for every column of tiles.
        content = found.fill.pairs if mask.soft else found.fill.words
        slots = 0 if mask.fill is None else np.asarray(mask.fill.slot).max(initial=0) + 1
        assert content.shape[2] >= slots
        before = 0
        if mask.fill is not None:
            before = (mask.fill.pairs if mask.soft else mask.fill.words).shape[2]
        assert content.shape[2] == before + mask.k_tiles
