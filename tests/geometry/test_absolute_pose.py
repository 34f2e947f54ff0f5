"""Poses from points and pixels: against the truth, another unit of the world, and COLMAP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.absolute_pose import absolute_pose, poses_of_three

HEIGHT, WIDTH, COUNT, WRONG, NOISE = 480, 640, 300, 0.6, 0.7
LENS = np.array([[500.0, 0, 320], [0, 520, 240], [0, 0, 1]])


def errors(w2c, truth):
    """Degrees and world units between two poses."""
    w2c, truth = np.asarray(w2c, float), np.asarray(truth, float)
    turned = Rotation.from_matrix(w2c[:3, :3] @ truth[:3, :3].T).magnitude()
    here, there = (-pose[:3, :3].T @ pose[:3, 3] for pose in (w2c, truth))
    return np.degrees(turned), np.linalg.norm(here - there)


def test_three_points_leave_few_poses_of_which_one_is_the_true_one():
    random, many = np.random.default_rng(0), 500
    rotation = Rotation.random(many, random_state=0).as_matrix()
    seen = random.normal([0, 0, 4], 1, (many, 3, 3))
    shift = random.normal(0, 3, (many, 3))
    points = np.einsum("nji,nkj->nki", rotation, seen - shift[:, None])
    rays = seen / np.linalg.norm(seen, axis=-1, keepdims=True)
    solve = jax.jit(jax.vmap(poses_of_three))
    found, there = map(np.asarray, solve(*(jnp.asarray(x, jnp.float32) for x in (points, rays))))
    away = np.abs(found - np.concatenate([rotation, shift[..., None]], -1)[:, None]).max((2, 3))
    nearest = np.where(there, away, np.inf).min(1)
    assert np.median(nearest) < 1e-5
    assert (nearest < 0.01).mean() > 0.99
    # All of them see the points along the rays.
    local = np.einsum("nsij,nkj->nski", found[..., :3], points) + found[:, :, None, :, 3]
    along = local / np.linalg.norm(local, axis=-1, keepdims=True)
    assert np.quantile(np.abs(along - rays[:, None])[there], 0.99) < 1e-2
    assert 1.5 < there.sum(1).mean() < 3


@pytest.fixture(scope="module")
def seen():
    """Points, the pixels that show them, most of which are wrong, which are right, and the pose."""
    random = np.random.default_rng(1)
    local = random.uniform([-2, -1.5, 3], [2, 1.5, 8], (COUNT, 3))
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=1).as_matrix()
    pose[:3, 3] = [3.0, -2.0, 1.0]
    points = (local - pose[:3, 3]) @ pose[:3, :3]
    pixels = (local @ LENS.T)[:, :2] / local[:, 2:] + random.normal(0, NOISE, (COUNT, 2))
    wrong = random.random(COUNT) < WRONG
    pixels[wrong] = random.uniform(0, [WIDTH, HEIGHT], (wrong.sum(), 2))
    return points, pixels, ~wrong, pose


def find(points, pixels, weight=None):
    weight = np.ones(COUNT) if weight is None else weight
    given = (jnp.asarray(x, jnp.float32) for x in (points, pixels, weight, LENS))
    return absolute_pose(*given, jax.random.key(0))


def test_the_pose_is_found_among_wrong_points(seen):
    points, pixels, right, pose = seen
    found = find(points, pixels)
    degrees, units = errors(found.w2c, pose)
    assert degrees < 0.1
    assert units < 0.01
    # As sure as it says, and no more.
    assert 0.2 < degrees / np.degrees(found.turn) < 4
    assert 0.2 < units / found.place < 4
    inlier = np.asarray(found.inlier)
    assert inlier[right].mean() > 0.9
    assert inlier[~right].mean() < 0.05
    assert 0.7 < found.residual / (NOISE * 2**0.5) < 1.1
    # A point of no weight has no say, and is no inlier.
    silent = find(points, np.where(right[:, None], pixels, 1e4), right.astype(float))
    assert max(errors(silent.w2c, pose)) < 0.1
    assert not np.asarray(silent.inlier)[~right].any()


def test_neither_unit_nor_origin_of_the_world_matter(seen):
    points, pixels, _, pose = seen
    for unit, origin in ((1e-3, np.zeros(3)), (1e3, np.zeros(3)), (1.0, np.array([500, -800, 90]))):
        moved = pose.copy()
        moved[:3, 3] = unit * pose[:3, 3] - pose[:3, :3] @ origin
        degrees, units = errors(find(unit * points + origin, pixels).w2c, moved)
        assert degrees < 0.1
        assert units < 0.02 * unit


def test_against_colmap(seen):
    colmap = pytest.importorskip(
        "pycolmap", reason="pycolmap (the evaluate extra) is not installed"
    )
    points, pixels, _, _ = seen
    camera = colmap.Camera(
        model="PINHOLE", width=WIDTH, height=HEIGHT, params=LENS[[0, 1, 0, 1], [0, 1, 2, 2]]
    )
    options = colmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error = 2.0
    options.ransac.random_seed = 0
    told = colmap.estimate_and_refine_absolute_pose(pixels, points, camera, options)
    theirs = np.eye(4)
    theirs[:3] = told["cam_from_world"].matrix()
    found = find(points, pixels)
    assert abs(int(found.inlier.sum()) - told["num_inliers"]) <= 3
    degrees, units = errors(found.w2c, theirs)
    assert degrees < 0.05
    assert units < 0.005


def test_too_few_points_are_refused():
    with pytest.raises(InputError, match="at least 4 points, got 3"):
        absolute_pose(
            jnp.ones((3, 3)), jnp.ones((3, 2)), jnp.ones(3), jnp.eye(3), jax.random.key(0)
        )
