import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from worldstereo_jax.memory import hole_filling

fill_holes = jax.jit(hole_filling.fill_holes)
nearest_known = jax.jit(hole_filling.nearest_known)
row_means = jax.jit(hole_filling.row_means)


def test_known_pixels_stay_and_a_constant_stays_constant():
    hole = jnp.zeros((13, 21)).at[4:9, 6:15].set(1.0)
    image = jnp.where(hole[..., None] > 0, jnp.nan, 0.25) * jnp.ones((13, 21, 3))
    filled = fill_holes(image, hole)
    np.testing.assert_allclose(filled, 0.25, atol=1e-6)
    ramp = jnp.linspace(-1, 1, 21)[None, :, None] * jnp.ones((13, 21, 1))
    filled = fill_holes(ramp, hole)
    np.testing.assert_array_equal(filled[hole == 0], ramp[hole == 0])
    assert float(jnp.abs(filled - ramp).max()) < 0.35


def test_a_hole_between_near_and_far_continues_the_far_surface():
    column = jnp.arange(32)[None, :] * jnp.ones((16, 1))
    hole = ((column >= 12) & (column < 20)).astype(jnp.float32)
    depth = jnp.where(column < 16, 1.0, 4.0) * (1 - hole)
    image = jnp.where(column < 16, 1.0, -1.0)[..., None]
    filled = fill_holes(image, hole, depth)[..., 0]
    assert float(filled[:, 16:20].max()) < -0.7
    assert float(filled[:, 12:20].mean()) < -0.4
    even = fill_holes(image, hole)[..., 0]
    assert float(even[:, 12:14].mean()) > 0.2
    # Nor is a sky drawn over both, however far it is, and in whatever unit.
    for unit in (1e-3, 1.0, 1e3):
        sky = jnp.broadcast_to(jnp.arange(16)[:, None] < 2, hole.shape) & (column >= 20)
        above = jnp.where(sky[..., None], 0.0, image)
        under = fill_holes(above, hole, unit * jnp.where(sky, 1e4, depth))[..., 0]
        assert float(jnp.abs(under - filled)[6:, 12:20].mean()) < 0.05


def test_nothing_known_gives_zero_and_never_nan():
    image = jnp.full((7, 5, 2), jnp.nan)
    filled = fill_holes(image, jnp.ones((7, 5)), jnp.zeros((7, 5)))
    np.testing.assert_array_equal(filled, 0.0)
    single = fill_holes(jnp.ones((7, 5, 2)), jnp.ones((7, 5)).at[3, 2].set(0.0))
    np.testing.assert_allclose(single, 1.0, atol=1e-6)


def test_the_nearest_known_pixel_is_that_of_an_exact_distance_transform():
    random = np.random.default_rng(0)
    for shape in ((17, 40), (32, 9), (5, 5)):
        known = random.uniform(size=shape) < 0.04
        known[0, 0] = True
        row, column = nearest_known(jnp.asarray(known), jnp.ones(shape))
        assert known[np.asarray(row), np.asarray(column)].all()
        exact = ndimage.distance_transform_edt(~known)
        here = np.mgrid[: shape[0], : shape[1]]
        found = np.hypot(here[0] - row, here[1] - column)
        # Jump flooding may take a pixel that is a little farther than the nearest, and rarely.
        assert (found < exact + 1e-4).mean() > 0.98
        assert (found <= exact + 1.5).all()


def test_reach_makes_a_pixel_count_as_nearer():
    known = jnp.zeros((1, 11), bool).at[0, jnp.array([0, 10])].set(True)
    _, column = nearest_known(known, jnp.ones((1, 11)).at[0, 10].set(4.0))
    np.testing.assert_array_equal(np.asarray(column)[0], [0, 0] + [10] * 9)


def test_what_touches_a_hole_goes_on_into_it():
    """Stripes that run into a hole at the border are still there a few pixels in."""
    stripe = jnp.where((jnp.arange(24) // 6) % 2 == 0, 1.0, -1.0)[:, None, None]
    image = jnp.broadcast_to(stripe, (24, 32, 1))
    hole = jnp.zeros((24, 32)).at[:, 20:].set(1.0)
    filled = fill_holes(image, hole)[..., 0]
    contrast = float(jnp.abs(filled[:, 22] - filled[:, 22].mean()).mean())
    assert contrast > 0.3


def test_far_from_what_is_known_a_hole_turns_into_the_prior():
    image = jnp.ones((20, 90, 1))
    hole = jnp.ones((20, 90)).at[:, 0].set(0.0)
    prior = jnp.full((20, 90, 1), -1.0)
    filled = fill_holes(image, hole, prior=prior)[..., 0]
    assert float(filled[:, 1].min()) > 0.5
    assert float(filled[:, 80:].max()) < -0.9
    assert (np.diff(np.asarray(filled), axis=1) < 1e-6).all()
    nothing = fill_holes(image, jnp.ones((20, 90)), prior=prior)
    np.testing.assert_allclose(nothing, prior, atol=1e-6)


def test_the_prior_keeps_its_grain():
    """Seams are smoothed before the prior comes in, not after."""
    grain = jax.random.normal(jax.random.key(0), (20, 90, 1))
    hole = jnp.ones((20, 90)).at[:, 0].set(0.0)
    filled = fill_holes(jnp.zeros((20, 90, 1)), hole, prior=grain)
    far = np.s_[:, 60:]
    correlation = np.corrcoef(np.ravel(filled[far]), np.ravel(grain[far]))[0, 1]
    assert correlation > 0.99
    assert float(filled[far].std() / grain[far].std()) > 0.9


def test_near_what_is_known_the_prior_gives_its_broad_colours_only():
    grain = jax.random.normal(jax.random.key(0), (40, 60, 1))
    hole = jnp.ones((40, 60)).at[:, 0].set(0.0)
    filled = fill_holes(jnp.zeros((40, 60, 1)), hole, prior=grain)
    near = np.s_[:, 4:12]
    assert float(filled[near].std()) < 0.1 * float(grain[near].std())


def test_means_of_rows_keep_the_sky_above():
    image = jnp.linspace(1, -1, 40)[:, None, None] + jax.random.normal(
        jax.random.key(0), (40, 30, 2)
    )
    means = row_means(image)
    np.testing.assert_array_equal(means, jnp.broadcast_to(means[:, :1], image.shape))
    np.testing.assert_allclose(means[:, 0, 0], jnp.linspace(1, -1, 40), atol=0.25)
    np.testing.assert_allclose(means.mean(), image.mean(), atol=0.05)


@pytest.mark.parametrize("shape", [(5, 6, 2), (1, 3, 1)])
def test_a_level_is_enlarged_as_by_linear_interpolation(shape):
    value = np.random.default_rng(0).random(shape, np.float32)
    found = jax.jit(lambda x: hole_filling._doubled(hole_filling._doubled(x, 0), 1))(value)
    wanted = jax.image.resize(value, (2 * shape[0], 2 * shape[1], shape[2]), "linear")
    np.testing.assert_allclose(found, wanted, atol=1e-6)
