import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation import reprojection

H, W, FOCAL, DEPTH = 20, 32, 40.0, 2.0
K = np.array([[FOCAL, 0.0, W / 2], [0.0, FOCAL, H / 2], [0.0, 0.0, 1.0]], np.float32)
PIXEL = DEPTH / FOCAL


def at(x: float) -> np.ndarray:
    """A camera at (x, 0, 0) looking along z."""
    w2c = np.eye(4, dtype=np.float32)
    w2c[0, 3] = -x
    return w2c


def wall(x: float, depth: float = DEPTH) -> np.ndarray:
    """The wall z = depth, its colours linear in world x and y, seen by the camera at x."""
    row, column = np.mgrid[:H, :W] + 0.5
    u = x + (column - W / 2) / FOCAL * depth
    v = (row - H / 2) / FOCAL * depth
    return np.stack([u * 0.5, v * 0.5, 0.2 * (u - v)], -1).astype(np.float32)


def carry(name, images, depths, views, targets, valid=None):
    return np.asarray(
        reprojection.reproject(
            name,
            np.stack(images),
            np.stack(depths),
            np.stack(views),
            np.tile(K, (len(views), 1, 1)),
            np.ones(len(views), bool) if valid is None else np.asarray(valid),
            np.stack(targets),
            np.tile(K, (len(targets), 1, 1)),
        )
    )


FLAT = np.full((H, W), DEPTH, np.float32)
EVERY = pytest.mark.parametrize("name", reprojection.REPROJECTIONS)


@EVERY
def test_a_shift_by_whole_pixels_is_exact_and_the_hole_takes_the_nearest_pixel(name: str):
    moved = carry(name, [wall(0.0)], [FLAT], [at(0.0)], [at(0.0), at(5 * PIXEL)])
    # Discs of equal depth composite in order, so a neighbour's colour leaks in.
    close = 1e-2 if name == "splat" else 1e-4
    inner = slice(2, -2) if name == "splat" else slice(None)
    np.testing.assert_allclose(moved[0][inner, inner], wall(0.0)[inner, inner], atol=close)
    seen = slice(2, W - 7) if name == "splat" else slice(0, W - 5)
    np.testing.assert_allclose(moved[1][inner, seen], wall(5 * PIXEL)[inner, seen], atol=close)
    last = moved[1][:, W - 6 if name != "splat" else W - 5]
    for column in range(W - 4, W):
        np.testing.assert_allclose(moved[1][4:-4, column], last[4:-4], atol=2e-2)


def test_between_pixels_bilinear_is_exact_and_nearest_is_off_by_less_than_a_pixel():
    x = 2.4 * PIXEL
    seen = (slice(2, -2), slice(2, W - 5))
    exact = carry("bilinear", [wall(0.0)], [FLAT], [at(0.0)], [at(x)])[0]
    np.testing.assert_allclose(exact[seen], wall(x)[seen], atol=1e-4)
    rough = carry("nearest", [wall(0.0)], [FLAT], [at(0.0)], [at(x)])[0]
    error = np.abs(rough - wall(x))[seen][..., 0]
    assert 0.3 * 0.5 * PIXEL < error.max() <= 0.5 * 0.5 * PIXEL + 1e-5


@EVERY
def test_the_near_surface_hides_the_far_one_and_each_view_fills_what_the_other_misses(name: str):
    """A post before a wall that is red behind it; only the second view sees the red."""
    far, near = 4.0, 1.0
    step = near / FOCAL

    def photograph(x: float) -> tuple[np.ndarray, np.ndarray]:
        column = np.mgrid[:H, :W][1] + 0.5
        post_x = x + (column - W / 2) / FOCAL * near
        post = np.abs(post_x) < 3 * step
        wall_x = x + (column - W / 2) / FOCAL * far
        image = np.zeros((H, W, 3), np.float32)
        image[np.abs(wall_x) < 9 * step, 0] = 0.8
        image[post] = [0.0, 0.0, 0.9]
        return image, np.where(post, near, far).astype(np.float32)

    views = [0.0, 8 * step]
    images, depths = zip(*(photograph(x) for x in views), strict=True)
    cameras = [at(x) for x in views]
    target = 12 * step
    truth, _ = photograph(target)
    result = carry(name, images, depths, cameras, [at(target)])[0]
    wrong = (np.abs(result - truth).max(-1) > 0.3).mean()
    assert wrong < 0.08
    alone = carry(name, images, depths, cameras, [at(target)], valid=[True, False])[0]
    red = (truth[..., 0] > 0.5) & (np.abs(result - truth).max(-1) < 0.3)
    assert red.sum() > 50
    assert (np.abs(alone - truth).max(-1) > 0.3)[red].mean() > 0.4


@EVERY
def test_views_that_hold_nothing_and_unknown_depth_do_not_count(name: str):
    junk = np.full((H, W, 3), 9.0, np.float32)
    hole = FLAT.copy()
    hole[:, 20:24] = 0.0
    image = wall(0.0)
    image[:, 20:24] = 9.0
    result = carry(
        name, [image, junk], [hole, FLAT], [at(0.0), at(0.0)], [at(0.0)], valid=[True, False]
    )[0]
    assert result.max() < 2.0
    # Each pixel of the gap takes the colour of the nearer rim.
    np.testing.assert_allclose(result[10, 21], wall(0.0)[10, 19], atol=3e-2)
    np.testing.assert_allclose(result[10, 23], wall(0.0)[10, 24], atol=3e-2)
    nothing = carry(name, [junk], [FLAT], [at(0.0)], [at(0.0)], valid=[False])
    np.testing.assert_array_equal(nothing, 0.0)


def test_holes_take_the_nearest_covered_pixel():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(9, 11, 2)).astype(np.float32)
    covered = rng.random((9, 11)) < 0.2
    filled = reprojection.fill_from_nearest(image, covered)
    rows, columns = np.nonzero(covered)
    for y in range(9):
        for x in range(11):
            distance = (rows - y) ** 2 + (columns - x) ** 2
            ties = np.flatnonzero(distance == distance.min())
            assert any((filled[y, x] == image[rows[t], columns[t]]).all() for t in ties)


def test_an_unknown_form_is_refused():
    with pytest.raises(InputError, match="nearest, bilinear, splat"):
        carry("cubic", [wall(0.0)], [FLAT], [at(0.0)], [at(0.0)])
