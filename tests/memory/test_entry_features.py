import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.entries import init_entries
from worldstereo_jax.memory.entry_features import (
    PYRAMID,
    Level,
    feature_pyramid,
    pyramid_widths,
    sample_map,
)
from worldstereo_jax.memory.entry_frame import make_entry_frame
from worldstereo_jax.memory.entry_update import update_entries

IMAGE = jax.random.uniform(jax.random.key(0), (32, 48, 3), minval=-1, maxval=1)


@pytest.mark.row("S1")
@pytest.mark.row("S9")
def test_the_pyramid_has_three_levels_that_look_ever_farther():
    pyramid = jax.jit(feature_pyramid)
    maps = pyramid(IMAGE)
    assert [m.shape for m in maps] == [(32, 48, 27), (8, 12, 27), (2, 3, 27)]
    # The finest is the picture around each pixel.
    np.testing.assert_allclose(maps[0][5, 7].reshape(3, 3, 3), IMAGE[4:7, 6:9], atol=1e-6)
    # A change 4 pixels away shows in the patch and in the context, not in the texture.
    changed = pyramid(IMAGE.at[20, 24].add(1.0))
    moved = [np.abs(np.asarray(a - b)).sum(-1) > 1e-6 for a, b in zip(maps, changed, strict=True)]
    assert not moved[0][16, 24]
    assert moved[1][4, 6]
    assert moved[2].any()


@pytest.mark.row("S1")
def test_levels_and_widths_are_configurable():
    levels = (Level("fine", 1, 1), Level("wide", 8, 5), Level("far", 16, 1), Level("all", 32, 3))
    maps = feature_pyramid(IMAGE, levels=levels)
    assert pyramid_widths(levels) == (3, 75, 3, 27) == tuple(m.shape[-1] for m in maps)
    with pytest.raises(InputError, match="odd grid"):
        Level("even", 1, 2)


@pytest.mark.row("S2")
def test_any_learned_map_can_be_plugged_in(room):
    learned = jax.random.normal(jax.random.key(1), (4, 6, 5))
    maps = feature_pyramid(IMAGE, learned)
    assert tuple(m.shape[-1] for m in maps) == pyramid_widths(learned_channels=5) == (27, 32, 27)
    flat = feature_pyramid(IMAGE, jnp.full((4, 6, 5), 0.3))
    np.testing.assert_allclose(flat[1][..., 27:], 0.3, atol=1e-6)
    # Its values reach the entries.
    image, depth = es.photographs(room, es.cameras(room, 1))
    frame = jax.jit(make_entry_frame)(
        jnp.asarray(image[0]),
        jnp.asarray(depth[0]),
        jnp.asarray(es.cameras(room, 1)[0]),
        jnp.asarray(es.INTRINSICS),
        view=0,
        learned=jnp.full((4, 6, 5), 0.3),
    )
    config = es.EntryConfig(1600, pyramid_widths(learned_channels=5))
    bank = update_entries(init_entries(config), frame, rule=es.RULE)
    held = np.asarray(bank.valid)
    assert held.sum() > 1000
    np.testing.assert_allclose(np.asarray(bank.features[1])[held, 27:], 0.3, atol=1e-5)


def test_samples_between_cells_are_bilinear():
    ramp = jnp.stack(jnp.meshgrid(jnp.arange(12.0), jnp.arange(8.0)), -1)
    pixels = jnp.array([[2.0, 2.0], [4.0, 30.0], [47.9, 0.1], [20.0, 13.0]])
    found = sample_map(ramp, pixels, height=32, width=48)
    meant = np.clip(np.asarray(pixels) / 4 - 0.5, 0, [11, 7])
    np.testing.assert_allclose(found, meant, atol=1e-5)


def test_the_default_levels_are_named_and_grow():
    assert [level.name for level in PYRAMID] == ["texture", "patch", "context"]
    assert [level.cell * level.grid for level in PYRAMID] == [3, 12, 48]
