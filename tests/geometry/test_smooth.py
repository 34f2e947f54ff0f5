import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.geometry import cameras, normalisation, points, rotations
from worldstereo_jax.geometry.smooth import arc_cosine, heading, length, root

LINE = jnp.linspace(0.0, 1.0, 9)


def _finite(tree) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))


def test_values_are_those_of_the_plain_functions():
    np.testing.assert_array_equal(root(LINE), jnp.sqrt(LINE))
    np.testing.assert_array_equal(arc_cosine(LINE), jnp.arccos(LINE))
    np.testing.assert_array_equal(heading(LINE, LINE[::-1]), jnp.arctan2(LINE, LINE[::-1]))
    rows = jnp.stack([LINE, LINE - 0.5, 2 * LINE], -1)
    np.testing.assert_array_equal(length(rows), jnp.linalg.norm(rows, axis=-1))


@pytest.mark.parametrize(
    ("ours", "plain", "at", "corner"),
    [
        (root, jnp.sqrt, (0.3,), (0.0,)),
        (arc_cosine, jnp.arccos, (0.3,), (1.0,)),
        (arc_cosine, jnp.arccos, (-0.6,), (-1.0,)),
        (heading, jnp.arctan2, (0.3, -0.2), (0.0, 0.0)),
    ],
)
def test_derivatives_are_the_plain_ones_and_0_where_those_are_not_finite(ours, plain, at, corner):
    at, corner = (tuple(map(jnp.asarray, place)) for place in (at, corner))
    every = tuple(range(len(at)))
    np.testing.assert_allclose(jax.grad(ours, every)(*at), jax.grad(plain, every)(*at), rtol=1e-5)
    np.testing.assert_allclose(jax.jacfwd(ours)(*at), jax.grad(plain)(*at), rtol=1e-5)
    assert not np.isfinite(jax.grad(plain)(*corner))
    np.testing.assert_array_equal(jax.grad(ours, every)(*corner), 0.0)
    assert not jax.grad(lambda x: length(x))(jnp.zeros(3)).any()


def test_geometry_has_finite_derivatives_where_lengths_vanish():
    """A camera at rest, points at the camera, unknown depth, and views from straight above."""
    still = jnp.tile(jnp.eye(4)[None], (3, 1, 1))
    k = jnp.array([[20.0, 0, 4], [0, 20, 3], [0, 0, 1]])
    depth = jnp.ones((6, 8)).at[2:4, 3:].set(0.0).at[0, 0].set(jnp.nan).at[5, 5].set(jnp.inf)
    places = jnp.array([[0.0, 0, 0], [0, 1, 0], [0, 0, 1]])

    def total(still, k, depth, places):
        found = (
            normalisation.normalise_trajectory(still),
            points.normals_from_depth(depth, still[0], k),
            points.contract_depth(jnp.where(jnp.isfinite(depth), depth, 0.0), medians=0.5),
            points.contract_depth(0.0 * places),
            cameras.polar_places(places, still[0], k, step=16),
            rotations.look_at(places, 0.0 * places),
        )
        return sum(jnp.sin(x + 1.0).sum() for x in found)

    every = (0, 1, 2, 3)
    value, slopes = jax.jit(jax.value_and_grad(total, every))(still, k, depth, places)
    assert _finite((value, slopes))
    assert all(bool(slope.any()) for slope in slopes)
