import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from tests.memory import entry_scene as es
from worldstereo_jax.geometry.points import depth_to_points
from worldstereo_jax.memory.entry_points import entries_to_points


@pytest.mark.row("S27")
def test_fused_points_have_fewer_floaters_than_the_frames_back_projected(room):
    """Six views with noisy depth whose edges bleed: error, floaters and number of points."""
    w2c = es.cameras(room, 10)[:6]
    images, depth = es.photographs(room, w2c)
    bled = es.noisy(np.stack([uniform_filter(d, 2) for d in depth]))
    confidence = np.ones_like(bled)  # nobody says where the edges are
    bank = es.build(es.frames(images, bled, w2c, confidence=confidence))
    cloud = entries_to_points(bank, least_confidence=0.5)
    fused = es.surface_error(np.asarray(cloud.points)[np.asarray(cloud.valid)])
    back = jax.vmap(depth_to_points, in_axes=(0, 0, None))(
        jnp.asarray(bled), jnp.asarray(w2c), jnp.asarray(es.INTRINSICS)
    )
    plain = es.surface_error(np.asarray(back).reshape(-1, 3))
    assert len(fused) < 0.5 * len(plain)
    assert np.median(fused) < 0.7 * np.median(plain)
    assert (fused > 0.15).mean() < 0.5 * (plain > 0.15).mean()
    # Nothing of the room is lost: every point of the frames has a fused one nearby.
    seen = np.asarray(cloud.points)[np.asarray(cloud.valid)]
    true = np.asarray(
        depth_to_points(jnp.asarray(depth[2]), jnp.asarray(w2c[2]), jnp.asarray(es.INTRINSICS))
    ).reshape(-1, 3)[::7]
    away = np.linalg.norm(true[:, None] - seen[None], axis=-1).min(1)
    assert (away < 0.25).mean() > 0.95
