import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.memory import visibility
from worldstereo_jax.memory.surface import inverse_depth
from worldstereo_jax.memory.visibility import visible_surface

prepare_views = jax.jit(functools.partial(visibility.prepare_views, tolerance=0.02))
splat_proposals = jax.jit(visibility.splat_proposals, static_argnames=("height", "width"))


def _views(views, **change):
    fields = {n: getattr(views, n) for n in ("depth", "confidence", "w2c", "intrinsics", "valid")}
    return prepare_views(**(fields | change))


@jax.jit
def _surface(views, w2c, intrinsics):
    h, w = views.inverse.shape[1:]
    return visible_surface(views, w2c, intrinsics, height=h, width=w, tolerance=0.02)


def _truly_shown(bank, target, t, view):
    """Which target pixels the view shows, by projecting the target's exact surface."""
    k, depth = np.asarray(target.intrinsics[t], float), np.asarray(target.depth[t], float)
    h, w = depth.shape
    y, x = np.mgrid[:h, :w] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(k).T
    move = np.asarray(bank.w2c[view], float) @ np.linalg.inv(np.asarray(target.w2c[t], float))
    points = (rays * depth[..., None]) @ move[:3, :3].T + move[:3, 3]
    q = points @ k.T
    u, v = np.floor(q[..., 0] / q[..., 2]).astype(int), np.floor(q[..., 1] / q[..., 2]).astype(int)
    inside = (u >= 0) & (v >= 0) & (u < w) & (v < h)
    stored = np.asarray(bank.depth[view])[np.clip(v, 0, h - 1), np.clip(u, 0, w - 1)]
    return inside & (np.abs(stored - points[..., 2]) < 0.03 * points[..., 2])


@pytest.mark.row("S18")
def test_visible_surface_is_the_true_depth_without_cracks(room):
    for t in range(2):
        inverse, _ = _surface(_views(room.bank), room.target.w2c[t], room.target.intrinsics[t])
        depth, truth = np.asarray(inverse_depth(inverse)), np.asarray(room.target.depth[t])
        covered = depth > 0
        error = np.abs(depth / truth - 1)[covered]
        assert np.quantile(error, 0.95) < 1e-3
        assert (error > 0.05).mean() < 0.01
        shown = np.any([_truly_shown(room.bank, room.target, t, v) for v in range(4)], axis=0)
        assert (covered & shown).sum() / shown.sum() > 0.99
        assert (covered & shown).sum() / covered.sum() > 0.98


@pytest.mark.row("S34")
def test_occlusion_per_view_matches_ray_casting(room):
    _, look = _surface(_views(room.bank), room.target.w2c[0], room.target.intrinsics[0])
    for view in range(4):
        found = np.asarray(look.agrees[view])
        truth = _truly_shown(room.bank, room.target, 0, view)
        both = (found & truth).sum()
        assert both / found.sum() > 0.97
        assert both / truth.sum() > 0.97
        hidden = ~truth
        assert (~found & hidden).sum() / hidden.sum() > 0.85


@pytest.mark.row("S18")
def test_a_magnified_surface_has_no_cracks(room):
    """A camera twice as near as the only view: points fall two pixels apart."""
    one = jax.tree.map(lambda x: x[1:2], vars(room.bank))
    forward = jnp.asarray(room.bank.w2c[1]).at[2, 3].add(-1.3)
    views = _views(SimpleNamespace(**one))
    inverse, _ = _surface(views, forward, room.bank.intrinsics[1])
    seen = np.asarray(inverse > 0)
    near, _, _ = splat_proposals(views, forward, room.bank.intrinsics[1], height=80, width=112)
    assert (np.asarray(near) > 0).mean() > 0.97
    # The upper third is the far wall, wholly in view.
    assert seen[2:25].mean() > 0.995


@pytest.mark.row("S18")
def test_a_view_through_a_longer_lens_has_no_cracks_either(room):
    """Points fall six pixels apart."""
    one = _views(SimpleNamespace(**jax.tree.map(lambda x: x[1:2], vars(room.bank))))
    zoom = jnp.asarray(room.bank.intrinsics[1]).at[jnp.arange(2), jnp.arange(2)].multiply(6.0)
    inverse, _ = _surface(one, room.bank.w2c[1], zoom)
    truth = room.take(np.asarray(room.bank.w2c[1]), np.asarray(zoom))[1]
    shown = np.asarray(inverse) > 0
    assert shown.mean() > 0.97
    error = np.abs(np.asarray(inverse_depth(inverse)) / truth - 1)
    assert (error[shown] < 0.02).mean() > 0.97


def _judged(room, depth, **change):
    """Covered pixels of the first target, and the relative error of depth in each."""
    target = room.target
    views = _views(room.bank, depth=depth, **change)
    inverse, _ = _surface(views, target.w2c[0], target.intrinsics[0])
    return np.asarray(inverse > 0), np.abs(inverse_depth(inverse) / target.depth[0] - 1)


@pytest.mark.row("S12")
def test_wrong_depth_in_one_view_is_voted_down(room):
    """A floating square in one view, which the three others look through, and so show what is
    behind: neither the square is drawn nor a hole."""
    square = np.s_[1, 10:30, 40:70]
    clean, _ = _judged(room, room.bank.depth)
    floating = [room.bank.depth.at[square].set(1.0)]
    floating += [room.bank.depth.at[square].multiply(factor) for factor in (0.85, 0.95)]
    for depth in floating:
        covered, error = _judged(room, depth)
        assert (clean & ~covered).sum() < 20
        assert (error[covered] > 0.02).mean() < 0.015


@pytest.mark.row("S12")
def test_copies_of_a_wrong_view_do_not_outvote_the_right_ones(room):
    """Three views whose depth was read from the wrong one, against two that measured."""
    depth = room.bank.depth.at[1, 10:30, 40:70].multiply(0.85)
    order = jnp.array([0, 1, 2, 3, 1, 1, 1])
    names = ("depth", "confidence", "w2c", "intrinsics", "valid")
    fields = {n: getattr(room.bank, n)[order] for n in names} | {"depth": depth[order]}
    measured = jnp.ones(fields["depth"].shape, bool).at[4:].set(False)
    target = room.target

    def judged(**change):
        views = prepare_views(**(fields | change))
        inverse, _ = _surface(views, target.w2c[0], target.intrinsics[0])
        return np.asarray(inverse > 0), np.abs(inverse_depth(inverse) / target.depth[0] - 1)

    covered, error = judged(measured=jnp.ones_like(measured))
    assert (error[covered] > 0.02).mean() > 0.03
    covered, error = judged(measured=measured)
    assert (error[covered] > 0.02).mean() < 0.015
    # They say less than a single view that measured as surely.
    even = {"confidence": jnp.ones(measured.shape), "valid": jnp.arange(7) >= 3}
    covered, error = judged(measured=measured, **even)
    assert (error[covered] > 0.02).mean() < 0.015
    # Where what they were read from is not among the views, they stand for it.
    alone = [jnp.zeros((7,), bool).at[i].set(True) for i in (1, jnp.arange(4, 7))]
    one, copies = (judged(measured=measured, valid=valid)[0] for valid in alone)
    np.testing.assert_array_equal(one, copies)
    assert one.mean() > 0.5


@pytest.mark.row("S12")
@pytest.mark.row("S18")
def test_a_view_whose_depth_is_off_by_a_factor_is_voted_down(room):
    """Also by a few percent: every front is averaged with what is behind it, or refuted by it.

    Where the wrong view stands against one other there is no majority; what the one wrong view
    alone sees is drawn as it says.
    """
    clean, _ = _judged(room, room.bank.depth)
    for factor in (0.8, 0.9, 0.94, 0.955, 0.96, 0.965, 0.98, 1.02, 1.04, 1.1, 1.2):
        covered, error = _judged(room, room.bank.depth.at[3].multiply(factor))
        assert (covered & clean).sum() > 0.995 * clean.sum(), factor
        assert (error[covered] > 0.02).mean() < 0.025, factor


@pytest.mark.row("S36")
def test_what_is_near_and_seen_by_one_view_is_drawn(room):
    """Nothing behind it is known to the others, or it is one view's word against another's."""
    square = np.s_[1, 10:30, 40:70]
    near = room.bank.depth.at[square].multiply(0.85)
    two = room.bank.valid & (np.arange(4) < 2)
    blind = near.at[np.array([0, 2, 3]), :55].set(0.0)
    alone = room.bank.valid & (np.arange(4) == 1)
    for depth, valid in ((near, two), (blind, room.bank.valid), (near, alone)):
        covered, error = _judged(room, depth, valid=valid)
        moved = covered & (np.abs(error - 0.15) < 0.05)
        assert moved.sum() > 400


@pytest.mark.row("S36")
def test_missing_depth_and_empty_banks_leave_holes_and_no_nan(room):
    empty = _views(room.bank, valid=jnp.zeros((4,), bool))
    inverse, look = _surface(empty, room.target.w2c[0], room.target.intrinsics[0])
    assert float(inverse.max()) == 0.0
    assert not bool(look.agrees.any())
    for leaf in jax.tree.leaves(look):
        assert bool(jnp.isfinite(leaf).all())
    broken = room.bank.depth.at[:, ::2].set(0.0).at[0, 5].set(jnp.nan).at[1, 7].set(jnp.inf)
    inverse, _ = _surface(
        _views(room.bank, depth=broken), room.target.w2c[0], room.target.intrinsics[0]
    )
    assert bool(jnp.isfinite(inverse).all())
    assert float((inverse > 0).mean()) > 0.5


@pytest.mark.row("S34")
def test_what_is_behind_does_not_show_through_a_rough_surface_that_came_near(room):
    h, w = room.bank.depth.shape[1:]
    intrinsics = room.bank.intrinsics
    rough = np.random.default_rng(0).normal(1.0, 0.006, (h, w))
    stored = jnp.asarray(np.where(np.arange(w) < 0.6 * w, rough, 4.0), jnp.float32)
    views = _views(
        room.bank,
        depth=room.bank.depth.at[0].set(stored),
        confidence=jnp.ones_like(room.bank.depth),
        w2c=room.bank.w2c.at[0].set(jnp.eye(4)),
        valid=room.bank.valid & (jnp.arange(len(room.bank.valid)) < 1),
    )
    closer = jnp.eye(4).at[:3, 3].set(jnp.array([0.1, 0.0, -0.5]))
    inverse, _ = _surface(views, closer, intrinsics[0])
    depth = np.asarray(inverse_depth(inverse))
    # The wall's edge is carried to where it is seen from there; without the test of its gaps 52
    # pixels of the wall show what is behind it.
    focal, _, middle = np.asarray(intrinsics[0, 0])
    edge = (0.6 * w - middle + 0.1 * focal) / 0.5 + middle
    wall = depth[:, : int(edge) - 4]
    assert (wall > 0).mean() > 0.98
    assert (wall > 2.0).sum() < 15
