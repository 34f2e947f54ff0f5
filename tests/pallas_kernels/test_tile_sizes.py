"""Tuned tile sizes are found by device, and are the default of masks from geometry."""

import jax.numpy as jnp
import pytest

import pallas_kernels as pk
from pallas_kernels import tile_sizes


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("TPU v5 lite", (512, 128)), ("NVIDIA H200", (128, 128)), ("Other", (128, 128))],
)
def test_a_device_has_the_longest_entry_that_it_begins_with(kind, sizes):
    assert pk.best_tiles(kind)[:2] == sizes


def test_every_entry_is_one_that_the_kernels_take_and_says_its_source():
    for entry in tile_sizes._read().values():
        assert entry.source
        assert {entry.tile_q % 32, entry.tile_k % 32} == {0}


def test_masks_from_geometry_have_them(monkeypatch):
    monkeypatch.setattr(tile_sizes, "_read", lambda: {"cpu": pk.TileSizes(64, 32, "here")})
    token = pk.make_token_geometry(jnp.zeros((1, 8, 3)), radius=1.0)
    masks = pk.from_geometry(token, token), pk.joint_correspondence(token, token, tile_q=8)
    assert [(mask.tile_q, mask.tile_k) for mask in masks] == [(64, 32), (8, 32)]
