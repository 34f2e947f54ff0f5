"""Frame pairs of the first paper's stereo branch."""

import functools

import jax
import numpy as np
import pytest

from tests.models.small_model import normal
from worldstereo_jax.models.stereo_v1 import StereoBlock, stitch, unstitch

GRID = (3, 2, 2)


def test_stitching_lays_a_pair_side_by_side_and_comes_back():
    target, reference = normal(0, 2, 12, 4), normal(1, 2, 12, 4)
    stitched = stitch(target, reference, GRID)
    back = unstitch(stitched, GRID)
    assert stitched.shape == (6, 8, 4)
    pair, target, reference = (np.asarray(x) for x in (stitched, target, reference))
    np.testing.assert_array_equal(pair[4, 0], target[1, 4])
    np.testing.assert_array_equal(pair[4, 2], reference[1, 4])
    np.testing.assert_array_equal(back[0], target)
    np.testing.assert_array_equal(back[1], reference)


@pytest.mark.row("S20")
def test_a_pair_attends_to_itself_only():
    block = StereoBlock(num_heads=2, ffn_width=8)
    target, reference, temb = normal(0, 1, 12, 12), normal(1, 1, 12, 12), normal(2, 1, 6)
    run = functools.partial(jax.jit, static_argnames="grid")
    params = run(block.init)(jax.random.key(0), target, reference, temb, grid=GRID)
    changed = np.array(reference)
    changed[:, 4:8] *= -1.0
    apply = run(block.apply)
    out, moved = (
        np.asarray(apply(params, target, x, temb, grid=GRID)[0]) for x in (reference, changed)
    )
    moved = np.abs(moved - out).max((0, 2)) > 1e-5
    np.testing.assert_array_equal(moved, [False] * 4 + [True] * 4 + [False] * 4)
