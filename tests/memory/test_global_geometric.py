import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry import cameras, rotations
from worldstereo_jax.geometry.splat import pixel_radius
from worldstereo_jax.memory import global_geometric as bank

H, W = 36, 60
K = np.array([[45.0, 0.0, 30.0], [0.0, 45.0, 18.0], [0.0, 0.0, 1.0]], np.float32)
RADIUS = pixel_radius(H, W, 1.2)
CAPACITY = 6000

# (axis, value, bounds of the other two axes): a wall with a box in front of it.
QUADS = (
    (2, 8.0, (-9.0, 9.0), (-6.0, 6.0)),
    (2, 2.5, (-0.5, 0.5), (-0.5, 0.5)),
    (0, 0.5, (-0.5, 0.5), (2.5, 3.5)),
    (0, -0.5, (-0.5, 0.5), (2.5, 3.5)),
)


def look(x: float, turn: float = 0.0) -> np.ndarray:
    """World-to-camera of a camera at (x, 0, 0), turned about the vertical axis."""
    w2c = np.eye(4, dtype=np.float32)
    w2c[:3, :3] = np.asarray(rotations.axis_angle_to_matrix(jnp.array([0.0, turn, 0.0])))
    w2c[:3, 3] = -w2c[:3, :3] @ np.array([x, 0.0, 0.0], np.float32)
    return w2c


def photograph(w2c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, depth and number of the quad seen, by ray casting."""
    y, x = np.mgrid[:H, :W] + 0.5
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones((H, W))], -1)
    rays = rays @ w2c[:3, :3]
    centre = -w2c[:3, :3].T @ w2c[:3, 3]
    depth, quad = np.full((H, W), np.inf), np.full((H, W), -1)
    for number, (axis, value, *bounds) in enumerate(QUADS):
        slope = np.where(np.abs(rays[..., axis]) < 1e-9, 1e-9, rays[..., axis])
        t = (value - centre[axis]) / slope
        hit = (t > 0) & (t < depth)
        others = [a for a in range(3) if a != axis]
        for other, (low, high) in zip(others, bounds, strict=True):
            place = centre[other] + t * rays[..., other]
            hit &= (place >= low) & (place <= high)
        depth, quad = np.where(hit, t, depth), np.where(hit, number, quad)
    depth = np.where(np.isfinite(depth), depth, 0.0)
    points = centre + depth[..., None] * rays
    image = 0.6 * np.sin(3.0 * points + quad[..., None])
    return image.astype(np.float32), depth.astype(np.float32), quad


def remember(memory, w2c: np.ndarray, **options):
    image, depth, _ = photograph(w2c)
    return bank.update_global_memory(memory, image, depth, w2c, K, radius_ndc=RADIUS, **options)


def show(memory, w2c: np.ndarray):
    return bank.render_global_memory(
        memory, w2c[None], K[None], height=H, width=W, radius_ndc=RADIUS
    )


def held(memory) -> tuple[np.ndarray, np.ndarray]:
    valid = np.asarray(memory.valid)
    return np.asarray(memory.positions)[valid], np.asarray(memory.colors)[valid]


PATH = [look(0.0), look(0.5, -0.12), look(1.0, -0.24), look(0.7, -0.1)]


@functools.cache
def full_bank():
    memory = bank.init_global_memory(CAPACITY)
    for w2c in PATH:
        memory = remember(memory, w2c)
    return memory


@pytest.mark.row("S26")
def test_a_first_frame_fills_the_bank_with_world_points_that_show_it_again():
    w2c = look(0.3, 0.2)
    image, depth, _ = photograph(w2c)
    memory = remember(bank.init_global_memory(CAPACITY), w2c)
    assert int(memory.overflow) == 0
    assert int(memory.count) == int(memory.valid.sum()) > 0.97 * (depth > 0).sum()
    positions, _ = held(memory)
    pixels, z = cameras.project(positions, w2c, K)
    column, row = np.floor(np.asarray(pixels)).astype(int).T
    np.testing.assert_allclose(z, depth[row, column], rtol=1e-5)
    render = show(memory, w2c)
    covered = np.asarray(render.mask[0]) == 0
    assert covered[depth > 0].mean() > 0.99
    # Discs of the near box reach a pixel into the wall.
    close = np.abs(np.asarray(render.depth[0]) - depth)[covered] < 0.02 * depth[covered]
    assert close.mean() > 0.95
    assert np.abs(np.asarray(render.image[0]) - image)[covered].mean() < 0.05


@pytest.mark.row("S26")
def test_the_same_frame_again_adds_nothing():
    for memory, w2c in ((full_bank(), PATH[-1]), (remember(full_bank(), look(-0.4)), look(-0.4))):
        again = remember(memory, w2c)
        assert int(again.count) == int(memory.count)
        np.testing.assert_array_equal(again.positions, memory.positions)


@pytest.mark.row("S26")
def test_a_second_view_adds_what_was_hidden_and_little_else():
    first = remember(bank.init_global_memory(CAPACITY), PATH[0])
    second = remember(first, PATH[2])
    np.testing.assert_array_equal(
        np.asarray(second.positions)[: int(first.count)],
        np.asarray(first.positions)[: int(first.count)],
    )
    image, depth, _ = photograph(PATH[2])
    before, after = show(first, PATH[2]), show(second, PATH[2])
    assert np.asarray(before.mask[0])[depth > 0].mean() > 0.2
    assert np.asarray(after.mask[0])[depth > 0].mean() < 0.02
    added = int(second.count) - int(first.count)
    assert added < 1.6 * np.asarray(before.mask[0])[depth > 0].sum()
    covered = np.asarray(after.mask[0]) == 0
    assert np.abs(np.asarray(after.image[0]) - image)[covered].mean() < 0.06


@pytest.mark.row("S34")
def test_a_surface_in_front_of_what_the_bank_shows_is_new():
    """The box's side was never seen, so the bank shows the wall through it: no hole, yet new."""
    first = remember(bank.init_global_memory(CAPACITY), look(-1.3, -0.35))
    w2c = look(1.6, 0.45)
    _, depth, quad = photograph(w2c)
    side = quad == 2
    assert side.sum() > 30
    through = side & (np.asarray(show(first, w2c).mask[0]) == 0)
    assert through.sum() > 10, "the scene must show the wall through the side"

    def error(memory) -> np.ndarray:
        return np.abs(np.asarray(show(memory, w2c).depth[0]) - depth)[through]

    holes_only = remember(first, w2c, depth_tolerance=math.inf)
    assert np.median(error(holes_only)) > 3.0
    assert np.median(error(remember(first, w2c))) < 0.3


def test_overflow_is_counted_and_nothing_held_is_lost():
    whole = remember(bank.init_global_memory(CAPACITY), PATH[0])
    total = int(whole.count)
    small = remember(bank.init_global_memory(100), PATH[0])
    assert int(small.count) == 100 == int(small.valid.sum())
    assert int(small.overflow) == total - 100
    np.testing.assert_array_equal(small.positions, whole.positions[:100])
    more = remember(small, PATH[2])
    assert int(more.count) == 100
    assert int(more.overflow) > int(small.overflow)
    np.testing.assert_array_equal(more.positions, small.positions)


def test_scan_with_donation_equals_a_python_loop():
    frames = [photograph(w2c)[:2] for w2c in PATH]
    stacked = (
        np.stack([image for image, _ in frames]),
        np.stack([depth for _, depth in frames]),
        np.stack(PATH),
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def roll(memory, clip):
        def step(memory, frame):
            return bank.update_global_memory(memory, *frame, K, radius_ndc=RADIUS), None

        return jax.lax.scan(step, memory, clip)[0]

    scanned = roll(bank.init_global_memory(CAPACITY), stacked)
    for left, right in zip(jax.tree.leaves(scanned), jax.tree.leaves(full_bank()), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


@pytest.mark.row("S38")
def test_the_bank_follows_a_rigid_motion_and_a_change_of_scale_of_the_world():
    turn = np.eye(4, dtype=np.float32)
    turn[:3, :3] = np.asarray(rotations.axis_angle_to_matrix(jnp.array([0.4, -0.7, 0.2])))
    turn[:3, 3] = [3.0, -1.0, 2.0]
    scale = 2.5
    moved = bank.init_global_memory(CAPACITY)
    for w2c in PATH:
        image, depth, _ = photograph(w2c)
        camera = (w2c @ np.linalg.inv(turn)).astype(np.float32)
        camera[:3, 3] *= scale
        moved = bank.update_global_memory(moved, image, scale * depth, camera, K, radius_ndc=RADIUS)
    positions, colors = held(full_bank())
    moved_positions, moved_colors = held(moved)
    # Rounding may tip a few pixels at a threshold; the points of the first frame are the same.
    assert abs(len(positions) - len(moved_positions)) <= 0.01 * len(positions)
    first = int(remember(bank.init_global_memory(CAPACITY), PATH[0]).count)
    expected = scale * (positions[:first] @ turn[:3, :3].T + turn[:3, 3])
    np.testing.assert_allclose(moved_positions[:first], expected, atol=2e-4)
    np.testing.assert_allclose(moved_colors[:first], colors[:first], atol=1e-6)


@pytest.mark.row("S36")
def test_missing_depth_is_left_out_and_everything_missing_adds_nothing():
    image, depth, _ = photograph(PATH[0])
    depth[:, : W // 2] = 0.0
    memory = bank.update_global_memory(
        bank.init_global_memory(CAPACITY), image, depth, PATH[0], K, radius_ndc=RADIUS
    )
    pixels, _ = cameras.project(held(memory)[0], PATH[0], K)
    assert float(pixels[:, 0].min()) > W // 2
    assert int(memory.count) > 0.9 * H * W / 2
    for nothing in (np.zeros_like(depth), np.full_like(depth, np.nan)):
        same = bank.update_global_memory(memory, image, nothing, PATH[2], K, radius_ndc=RADIUS)
        assert int(same.count) == int(memory.count)


def test_smeared_depth_edges_do_not_enter_the_bank():
    image, depth, quad = photograph(PATH[0])
    smeared = depth.copy()
    border = (quad[:, 1:] == 1) & (quad[:, :-1] == 0)
    row, column = np.nonzero(border)
    smeared[row, column] = 0.5 * (depth[row, column] + depth[row, column + 1])
    memory = bank.update_global_memory(
        bank.init_global_memory(CAPACITY), image, smeared, PATH[0], K, radius_ndc=RADIUS
    )
    z = held(memory)[0][:, 2]
    assert ((np.abs(z - 2.5) < 0.01) | (np.abs(z - 8.0) < 0.01)).all()
    assert len(z) >= H * W - len(row) - 8


def test_the_official_edge_rule_can_be_asked_for():
    image, depth, _ = photograph(PATH[0])
    ours = remember(bank.init_global_memory(CAPACITY), PATH[0])
    official = remember(bank.init_global_memory(CAPACITY), PATH[0], edges="official")
    assert int(official.count) < int(ours.count)
    assert (np.asarray(held(official)[0])[:, 2] > 0).all()
    with pytest.raises(InputError, match="edges must be one of surface, official"):
        bank.update_global_memory(ours, image, depth, PATH[0], K, edges="sobel")


def test_a_bank_without_room_is_refused():
    with pytest.raises(InputError, match="capacity"):
        bank.init_global_memory(0)


def test_a_second_update_compiles_nothing():
    memory = remember(full_bank(), PATH[1])
    update: Any = bank.update_global_memory
    compiled = update._cache_size()
    remember(memory, PATH[3])
    assert update._cache_size() == compiled
