import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_features import PYRAMID
from worldstereo_jax.memory.entry_field import entry_geometry, entry_radii
from worldstereo_jax.memory.masks import ViewSet

VIEW = ViewSet(
    depth=jnp.full((1, es.HEIGHT, es.WIDTH), 4.0),
    w2c=jnp.eye(4)[None],
    intrinsics=jnp.asarray(es.INTRINSICS)[None],
    valid=jnp.ones((1,), bool),
)


def _one(turn=0.0, **change):
    """Two equal entries 4 m ahead, facing the camera but for a turn about the vertical."""
    normal = jnp.tile(jnp.array([[np.sin(turn), 0.0, -np.cos(turn)]], jnp.float32), (2, 1))
    bank = init_entries(EntryConfig(2, (3, 3, 3)))
    fields = {
        "position": jnp.tile(jnp.array([[0.0, 0.0, 4.0]]), (2, 1)),
        "normal": normal,
        "direction": jnp.tile(jnp.array([[0.0, 0.0, -1.0]]), (2, 1)),
        "footprint": jnp.full((2,), 4.0 / 42.0),
        "confidence": jnp.full((2,), 0.8),
        "information": jnp.full((2,), 1e4),
        "valid": jnp.ones((2,), bool),
        "count": jnp.asarray(2, jnp.int32),
    }
    return bank.replace(**(fields | {k: jnp.full((2,), v) for k, v in change.items()}))


@pytest.mark.row("S19")
def test_the_field_grows_with_doubt_and_distance_shrinks_with_detail_stretches_with_slant():
    texture, patch, context = PYRAMID
    base = np.asarray(entry_radii(_one(), texture))[0]
    for doubt in ({"confidence": 0.2}, {"information": 1e2}, {"scatter": 0.01}):
        assert (np.asarray(entry_radii(_one(**doubt), texture))[0][:2] > 1.2 * base[:2]).all()
    far = np.asarray(entry_radii(_one(footprint=8.0 / 42.0), texture))[0]
    assert far[1] / base[1] == pytest.approx(2.0, rel=0.1)
    sizes = [np.asarray(entry_radii(_one(), level))[0, 1] for level in (texture, patch, context)]
    assert sizes[1] / sizes[0] == pytest.approx(4.0, rel=0.1)
    assert sizes[2] / sizes[1] == pytest.approx(4.0, rel=0.1)
    assert base[0] == pytest.approx(base[1])
    slanted = np.asarray(entry_radii(_one(turn=np.pi / 3), texture))[0]
    assert slanted[0] / slanted[1] == pytest.approx(2.0, rel=1e-4)
    assert slanted[2] < slanted[1]


@pytest.mark.row("S5")
@pytest.mark.row("S15")
def test_entries_are_tokens_with_the_field_along_the_slant():
    bank = _one(turn=np.pi / 3)
    tokens = entry_geometry(bank, jnp.array([0, 1, 7]), PYRAMID[1], VIEW)
    xx, yy, zz, xy, xz, yz = np.asarray(tokens.metric[0, 0])
    values, axes = np.linalg.eigh(np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]))
    radii = 1 / np.sqrt(values)
    np.testing.assert_allclose(radii, entry_radii(bank, PYRAMID[1])[0], rtol=1e-3)
    # The long axis lies in the surface and in the plane of the slant.
    np.testing.assert_allclose(np.abs(axes[:, 0]), [0.5, 0, np.sqrt(0.75)], atol=1e-3)
    frontal = entry_geometry(_one(), jnp.array([0, 1, 7]), PYRAMID[1], VIEW)
    assert frontal.log_weight[0, 0] > tokens.log_weight[0, 0]
    np.testing.assert_array_equal(tokens.valid[0], [True, True, False])
    np.testing.assert_array_equal(tokens.segment[0], [0, 0, -1])
    # The view shows a surface at 4 m: an entry well behind it is not visible there.
    hidden = bank.replace(position=bank.position.at[1, 2].set(9.0))
    seen = entry_geometry(hidden, jnp.array([0, 1, 7]), PYRAMID[0], VIEW).visibility[0, :, 0]
    np.testing.assert_array_equal(np.asarray(seen[:2]) & 1, [1, 0])
