import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_frame import frame_surface
from worldstereo_jax.memory.entry_match import sight_entries
from worldstereo_jax.memory.entry_update import DEFAULT_RULE

_sight = jax.jit(sight_entries, static_argnames="gate")


def _entries(positions, cameras):
    """Entries at `positions`, each said to have been seen from one of `cameras`."""
    positions, cameras = np.asarray(positions, np.float32), np.asarray(cameras, np.float32)
    away = cameras - positions
    distance = np.linalg.norm(away, axis=-1)
    n = len(positions)
    direction = away / distance[:, None]
    return init_entries(EntryConfig(n, (3,))).replace(
        position=jnp.asarray(positions),
        anchor=jnp.asarray(positions),
        eye=jnp.asarray(cameras),
        normal=jnp.asarray(direction),
        direction=jnp.asarray(direction),
        distance=jnp.asarray(distance),
        valid=jnp.ones((n,), bool),
    )


def _frame(depth):
    images = np.zeros((1, *depth.shape, 3), np.float32)
    return es.one(es.frames(images, depth[None], np.eye(4, dtype=np.float32)[None]), 0)


@pytest.fixture(scope="module")
def wall():
    """A wall at 4 metres, before it in the middle a plate at 2 metres."""
    depth = np.full((es.HEIGHT, es.WIDTH), 4.0, np.float32)
    depth[8:24, 16:32] = 2.0
    return frame_surface(_frame(depth))


@pytest.mark.row("S4")
@pytest.mark.row("S10")
@pytest.mark.row("S34")
def test_seen_looked_through_hidden_or_turned_away(wall):
    eye = [0.0, 0.0, 0.0]
    positions = [
        [0.05, 0.05, 2.0],  # on the plate
        [0.05, 0.05, 1.0],  # before it
        [1.5, 0.0, 4.0],  # on the wall
        [1.5, 0.0, 3.0],  # before the wall
        [1.5, 0.0, 4.08],  # on the wall, within the gate
        [0.05, 0.05, 4.0],  # on the wall behind the plate, seen from beside it
        [0.05, 0.05, 2.0],  # on the plate, but seen from behind
        [9.0, 0.0, 4.0],  # out of the picture
        [2.2, 0.0, 4.0],  # on the wall, but seen along it from a little behind
        [2.2, 0.0, 4.0],  # on the wall, seen along it from before it
    ]
    cameras = [eye] * 5 + [[3.0, 0.0, 0.5], [0.0, 0.0, 5.0], eye]
    cameras += [[-0.6, 0.0, 5.3], [-0.6, 0.0, 2.7]]
    found = _sight(_entries(positions, cameras), wall, gate=0.05)
    np.testing.assert_array_equal(found.agrees, [1, 0, 1, 0, 1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(found.denies, [0, 1, 0, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(found.point[4], np.array([1.5, 0.0, 4.08]) * 4 / 4.08, atol=1e-4)
    np.testing.assert_allclose(found.footprint[0], 2.0 / 42, rtol=1e-4)
    np.testing.assert_allclose(found.distance[2], np.hypot(1.5, 4.0), rtol=1e-5)


@pytest.mark.row("S12")
@pytest.mark.row("S34")
def test_a_surface_across_the_line_of_sight_denies_and_a_silhouette_does_not(wall):
    positions = [
        [1.5, 0.0, 6.0],  # behind the wall, said to be seen through it
        [-1.0, 0.3, 7.0],
        [0.05, 0.05, 3.0],  # behind the plate, said to be seen through it
        [0.05, 0.05, 3.0],  # behind the plate, seen from beside it
        [0.3, 0.2, 3.5],
    ]
    cameras = [[0.2, 0.1, 0.0]] * 3 + [[-3.0, 0.0, 2.5], [3.0, 0.0, 3.0]]
    found = _sight(_entries(positions, cameras), wall, gate=0.02)
    np.testing.assert_array_equal(found.denies, [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(np.asarray(found.weight) > 0, [1, 1, 1, 0, 0])
    assert not found.agrees.any()


@pytest.mark.row("S12")
@pytest.mark.parametrize("rule", [DEFAULT_RULE, es.RULE], ids=["half a percent", "one percent"])
def test_what_is_a_little_too_near_or_too_far_is_contradicted(wall, rule):
    """No depth is told so wrong that it neither agrees nor is denied."""
    factors = np.array([0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.985, 1.0, 1.015])
    factors = np.append(factors, [1.03, 1.06, 1.1, 1.2])
    found = _sight(
        _entries(factors[:, None] * [1.5, 0.2, 4.0], np.zeros((13, 3))), wall, gate=rule.gate
    )
    agrees = np.abs(factors - 1.0) <= rule.gate
    np.testing.assert_array_equal(found.agrees, agrees)
    np.testing.assert_array_equal(found.denies, ~agrees)
    np.testing.assert_array_equal(found.through, ~agrees & (factors < 1))
    np.testing.assert_array_equal(np.asarray(found.weight) > 0.9, np.ones(13, bool))
    # Two surfaces on a ray are told from one that was measured badly.
    clear = (factors > 1 + 3 * rule.gate) | (factors < 1 / (1 + 3 * rule.gate))
    np.testing.assert_array_equal(found.apart, clear)


@pytest.mark.row("S22")
@pytest.mark.row("S34")
def test_beside_a_silhouette_nothing_between_both_surfaces_is_contradicted(wall):
    """The plate's right edge lies between the pixels 31 and 32: either may show its rim."""
    pixels, depth = [31.5, 32.5, 31.5, 32.5, 32.5], np.array([2.0, 2.0, 3.0, 3.0, 1.8])
    places = [[(x - 24) / 42 * z, 0.01, z] for x, z in zip(pixels, depth, strict=True)]
    found = _sight(_entries(places, [[0.0, 0.0, 0.0]] * 3 + [[4.0, 0.0, 3.0]] * 2), wall, gate=0.05)
    np.testing.assert_array_equal(found.agrees, [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.through, [0, 0, 0, 0, 1])


def test_without_depth_nothing_is_said():
    surface = frame_surface(_frame(np.zeros((es.HEIGHT, es.WIDTH), np.float32)))
    found = _sight(_entries([[0.0, 0.0, 2.0]], [[0.0, 0.0, 0.0]]), surface, gate=0.05)
    assert not (found.agrees | found.denies).any()
    es.assert_finite(found)
