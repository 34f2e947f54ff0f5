import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data, feature

from worldstereo_jax.memory.descriptors import (
    brightness,
    census_code,
    census_distance,
    gradient_code,
    halve,
    structure_response,
)

SIZE = (96, 128)


@pytest.fixture(scope="module")
def picture():
    """A piece of a real photograph, in [-1, 1]."""
    part = data.astronaut()[20 : 20 + SIZE[0], 170 : 170 + SIZE[1]]
    return jnp.asarray(part, jnp.float32) / 127.5 - 1.0


@pytest.mark.row("S2")
@pytest.mark.parametrize(("gain", "shift"), [(0.4, 0.0), (1.0, 0.25), (1.8, -0.1)])
def test_codes_forget_gain_and_brightness(picture, gain, shift):
    other = gain * picture + shift
    # Comparisons next to a tie may fall either way by rounding.
    same = census_distance(census_code(picture), census_code(other))
    assert float(same.mean()) < 2e-3
    np.testing.assert_allclose(gradient_code(picture), gradient_code(other), atol=2e-3)
    for a, b in zip(structure_response(picture), structure_response(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.row("S2")
def test_census_equals_its_definition(picture):
    code = np.asarray(census_code(picture))
    assert code.dtype == np.uint32
    # The definition: a step from dark to bright is brighter on one side only.
    step = jnp.where(jnp.arange(40) < 20, -0.5, 0.5)
    step = jnp.tile(step[None, :, None], (30, 1, 3))
    at_edge = int(census_code(step)[15, 19])
    assert 8 <= bin(at_edge).count("1") <= 24
    assert int(census_code(step)[15, 5]) == 0
    assert bin(int(census_code(-step)[15, 20]) ^ at_edge).count("1") > 8


@pytest.mark.row("S2")
def test_a_pixel_is_found_again_by_its_code_in_a_changed_copy(picture):
    """Shifted by (5, 3), darker, with noise: the true place beats every other for most corners."""
    rng = np.random.default_rng(0)
    moved = 0.6 * jnp.roll(picture, (3, 5), (0, 1)) - 0.2 + 0.02 * rng.normal(size=picture.shape)
    moved = moved.astype(jnp.float32)
    corner = np.array(structure_response(picture).corner)
    corner[:12], corner[-12:], corner[:, :12], corner[:, -12:] = 0, 0, 0, 0
    order = np.argsort(corner.ravel())[-200:]
    truth = order + 3 * SIZE[1] + 5
    gradient = (
        gradient_code(picture).reshape(-1, 72)[order] @ gradient_code(moved).reshape(-1, 72).T
    )
    assert float((gradient.argmax(1) == truth).mean()) > 0.9
    census = census_code(picture).reshape(-1)[order]
    distance = census_distance(census[:, None], census_code(moved).reshape(-1)[None, :])
    off = np.abs(np.asarray(distance.argmin(1)) - truth)
    assert (off == 0).mean() > 0.5
    assert float(distance[np.arange(200), truth].mean()) < 0.2 < float(distance.mean())


@pytest.mark.row("S2")
def test_flat_places_have_short_codes(picture):
    flat = picture.at[:48].set(0.3)
    length = jnp.linalg.norm(gradient_code(flat), axis=-1)
    assert float(length[10:35, 10:-10].max()) < 0.1
    assert float(jnp.median(length[60:])) > 0.9
    assert float(jnp.abs(gradient_code(jnp.zeros((20, 20, 3)))).max()) == 0.0


@pytest.mark.row("S2")
@pytest.mark.row("S22")
def test_edge_and_corner_response(picture):
    square = jnp.zeros((60, 60, 3)).at[20:40, 20:40].set(1.0)
    found = structure_response(square)
    for row, column, kind in ((20, 20, "corner"), (20, 30, "edge"), (30, 20, "edge")):
        assert (found.corner[row, column] > 0.3) == (kind == "corner")
        assert (found.edge[row, column] > 0.8) == (kind == "edge")
    assert float(found.corner[5, 5]) == float(found.edge[30, 30]) == 0.0
    # Against an independent implementation on a photograph, by rank.
    light = np.asarray(brightness(picture), np.float64)
    tensor = feature.structure_tensor(light, sigma=1.7, order="rc")
    small = feature.structure_tensor_eigenvalues(tensor)[1]
    ranks = [np.argsort(np.argsort(x[8:-8, 8:-8].ravel())) for x in
             (small, np.asarray(structure_response(picture).corner))]  # fmt: skip
    assert np.corrcoef(*ranks)[0, 1] > 0.95


def test_halve_keeps_the_mean_and_drops_an_odd_border(picture):
    half = halve(picture[:95, :127])
    assert half.shape == (47, 63, 3)
    np.testing.assert_allclose(half.mean(), picture[:94, :126].mean(), atol=1e-5)


def test_half_precision_is_computed_in_single_and_flat_places_have_finite_derivatives(picture):
    half = jnp.asarray(picture[:24, :32], jnp.bfloat16)
    whole = half.astype(jnp.float32)
    for found, wanted in zip(structure_response(half), structure_response(whole), strict=True):
        np.testing.assert_array_equal(found, wanted)
    slope = jax.grad(lambda x: structure_response(x).corner.sum())(jnp.zeros((24, 32, 3)))
    assert np.isfinite(slope).all()
