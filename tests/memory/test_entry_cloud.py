"""The entries' surfaces as points: coverage, placement and what may be asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import KDTree

from tests.memory import entry_scene as es
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.points import depth_to_points
from worldstereo_jax.memory.entries import init_entries
from worldstereo_jax.memory.entry_cloud import surface_cloud
from worldstereo_jax.memory.entry_points import entry_colors

SPACING = 0.04


@pytest.fixture(scope="module")
def bank(room):
    w2c = es.cameras(room, 3)
    images, depth = es.photographs(room, w2c)
    return es.build(es.frames(images, depth, w2c))


def sloping_floor(height=1.0):
    """A floor seen by a level camera: the farther, the flatter the rays that see it."""
    rows = (np.arange(es.HEIGHT) + 0.5 - es.INTRINSICS[1, 2]) / es.INTRINSICS[1, 1]
    depth = np.where(rows > 0.06, height / np.maximum(rows, 1e-6), 0.0)
    depth = np.broadcast_to(depth[:, None], (es.HEIGHT, es.WIDTH)).astype(np.float32)
    image = np.zeros((1, es.HEIGHT, es.WIDTH, 3), np.float32)
    return image, depth[None], np.eye(4, dtype=np.float32)[None]


@pytest.mark.row("S27")
def test_a_floor_seen_at_a_flat_angle_is_closed():
    image, depth, w2c = sloping_floor()
    bank = es.build(es.frames(image, depth, w2c))
    cloud = surface_cloud(bank, spacing=SPACING, least_confidence=0.0)
    np.testing.assert_allclose(cloud.positions[:, 1], 1.0, atol=1e-3)
    # The floor itself, up to where a ray is as flat as the entries take any to be.
    far = 1.0 / np.tan(np.arcsin(0.25))
    true = np.stack(
        np.meshgrid(np.linspace(-0.8, 0.8, 80), [1.0], np.linspace(2.8, far, 80)), -1
    ).reshape(-1, 3)
    away = KDTree(cloud.positions).query(true)[0]
    middles = KDTree(np.asarray(bank.position)[np.asarray(bank.valid)]).query(true)[0]
    # No hole is wider than the diagonal between four points.
    assert away.max() < SPACING
    assert (middles > SPACING).mean() > 0.3


def test_pieces_are_filled_as_closely_as_asked(bank):
    keep = np.asarray(bank.valid & (bank.confidence >= 0.1))  # all of source 0
    for spacing in (None, 0.1, 0.03):
        cloud = surface_cloud(bank, spacing=spacing)
        np.testing.assert_array_equal(np.unique(cloud.entry), np.flatnonzero(keep))
        middle = np.asarray(bank.position)[cloud.entry]
        normal = np.asarray(bank.normal)[cloud.entry]
        off = cloud.positions - middle
        np.testing.assert_allclose((off * normal).sum(-1), 0.0, atol=1e-5)
        np.testing.assert_array_equal(cloud.normals, normal)
        np.testing.assert_array_equal(cloud.colors, np.asarray(entry_colors(bank))[cloud.entry])
        # The middle of each piece's points is the entry.
        sums = np.zeros((bank.capacity, 3))
        np.add.at(sums, cloud.entry, off)
        np.testing.assert_allclose(sums, 0.0, atol=1e-3)
        width = np.asarray(bank.footprint * bank.spacing)[cloud.entry]
        assert (np.linalg.norm(off, axis=-1) <= 0.5 * width * np.hypot(4.0, 1.0)).all()
    fine = surface_cloud(bank, spacing=0.03)
    slots, points = np.unique(fine.entry, return_counts=True)
    assert (points > 1).mean() > 0.5
    for slot in slots[points > 1][::50]:
        piece = fine.positions[fine.entry == slot]
        near = KDTree(piece).query(piece, k=2)[0][:, 1]
        assert near.max() <= 0.03 * 1.001


def test_turning_or_scaling_the_world_turns_or_scales_the_points(room):
    w2c = es.cameras(room, 2)
    images, depth = es.photographs(room, w2c)
    angle = np.radians(40.0)
    turn = np.eye(4, dtype=np.float32)
    turn[:3, :3] = [
        [np.cos(angle), 0, np.sin(angle)],
        [0, 1, 0],
        [-np.sin(angle), 0, np.cos(angle)],
    ]
    turned = (w2c @ turn).astype(np.float32)  # the world turned by the inverse
    plain = surface_cloud(es.build(es.frames(images, depth, w2c)), spacing=0.1)
    other = surface_cloud(es.build(es.frames(images, depth, turned)), spacing=0.1)
    large = surface_cloud(es.build(es.frames(images, depth, w2c, scale=4.0)), spacing=0.4)

    def apart(ours, theirs):
        """Share of points without a counterpart: rounding decides how many a piece gets."""
        both = KDTree(ours).query(theirs)[0], KDTree(theirs).query(ours)[0]
        return max((x > 0.02).mean() for x in both)

    assert apart(plain.positions @ turn[:3, :3], other.positions) < 0.02
    assert apart(plain.positions, large.positions / 4.0) < 0.02


@pytest.mark.row("S27")
def test_surfaces_reconstruct_the_room_better_than_its_frames(room):
    """Noisy depth: points nearer to the surfaces, fewer floaters, no fewer places covered."""
    w2c = es.cameras(room, 8)
    images, depth = es.photographs(room, w2c)
    measured = es.noisy(depth)
    bank = es.build(es.frames(images, measured, w2c))
    lift = jax.vmap(depth_to_points)
    cameras = jnp.asarray(w2c), jnp.broadcast_to(jnp.asarray(es.INTRINSICS), (len(w2c), 3, 3))
    back = np.asarray(lift(jnp.asarray(measured), *cameras)).reshape(-1, 3)
    true = np.asarray(lift(jnp.asarray(depth), *cameras)).reshape(-1, 3)
    cloud = surface_cloud(bank, spacing=0.05)
    ours, theirs = es.surface_error(cloud.positions), es.surface_error(back)
    assert np.median(ours) < 0.6 * np.median(theirs)
    assert (ours > 0.1).mean() < 0.5 * (theirs > 0.1).mean()
    missed = [(KDTree(x).query(true)[0] > 0.1).mean() for x in (cloud.positions, back)]
    assert missed[0] < missed[1] + 0.02


def test_what_is_not_sure_is_left_out_and_nothing_gives_nothing(bank):
    doubtful = dataclasses.replace(bank, confidence=bank.confidence.at[::2].set(0.2))
    for source, kept in ((0, 0.1), (1, 0.6)):
        told = dataclasses.replace(doubtful, source=jnp.full_like(bank.source, source))
        expected = np.asarray(told.valid & (told.confidence >= kept))
        np.testing.assert_array_equal(
            np.unique(surface_cloud(told).entry), np.flatnonzero(expected)
        )
    assert (surface_cloud(doubtful, least_given=0.6).entry % 2 == 1).all()
    everything = surface_cloud(doubtful, least_confidence=0.0)
    assert len(np.unique(everything.entry)) == int(bank.valid.sum())
    empty = surface_cloud(init_entries(es.CONFIG), spacing=0.1)
    assert empty.positions.shape == empty.colors.shape == empty.normals.shape == (0, 3)


@pytest.mark.parametrize(
    ("spacing", "said"),
    [
        (0.0, "positive spacing"),
        (-1.0, "positive spacing"),
        (float("nan"), "positive"),
        (1e-6, "wider"),
    ],
)
def test_a_spacing_that_cannot_be_is_named(bank, spacing, said):
    with pytest.raises(InputError, match=said):
        surface_cloud(bank, spacing=spacing)
