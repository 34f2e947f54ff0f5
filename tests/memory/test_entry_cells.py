import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.memory.entry_cells import (
    best_of_cell,
    cell_hash,
    cell_level,
    nearest_in_cells,
)


@pytest.fixture(scope="module")
def sheet():
    random = np.random.default_rng(0)
    plane = random.uniform(-1, 1, (600, 2))
    points = np.stack([plane[:, 0], plane[:, 1], 0.2 * np.sin(3 * plane[:, 0])], -1)
    return points.astype(np.float32)


def test_levels_are_the_largest_cells_within_the_footprint():
    footprint = jnp.array([1.0, 0.99, 0.5, 3.0, 0.0])
    np.testing.assert_array_equal(cell_level(footprint), [0, -1, -1, 1, 0])


@pytest.mark.row("S28")
def test_the_best_of_each_cell_is_that_of_a_dictionary(sheet):
    random = np.random.default_rng(1)
    score = random.integers(0, 5, 600).astype(np.float32)
    valid = random.random(600) < 0.9
    level = jnp.full((600,), -2)
    found = jax.jit(best_of_cell)(cell_hash(jnp.asarray(sheet), level), score, jnp.asarray(valid))
    best = {}
    for i, cell in enumerate(map(tuple, np.floor(sheet / 0.25).astype(int))):
        if valid[i] and (cell not in best or score[i] > score[best[cell]]):
            best[cell] = i
    np.testing.assert_array_equal(np.flatnonzero(found), sorted(best.values()))


@pytest.mark.row("S33")
def test_the_nearest_of_its_cells_is_the_nearest_within_the_side_promised(sheet):
    stored, query = sheet[:400], sheet[400:] + np.float32(0.004)
    level = jnp.full((400,), -5)
    valid = np.arange(400) % 7 != 0
    index, away = jax.jit(nearest_in_cells)(
        jnp.asarray(stored), level, jnp.asarray(valid), jnp.asarray(query), jnp.full((200,), -5)
    )
    distance = np.linalg.norm(query[:, None] - stored[None], axis=-1)
    distance[:, ~valid] = np.inf
    true = distance.min(1)
    near = true <= 2.0**-5
    assert near.sum() > 20
    np.testing.assert_array_equal(np.asarray(index)[near], distance.argmin(1)[near])
    np.testing.assert_allclose(np.asarray(away)[near], true[near], rtol=1e-4)
    none = np.asarray(index) < 0
    assert none.any()
    assert np.isinf(np.asarray(away)[none]).all()
