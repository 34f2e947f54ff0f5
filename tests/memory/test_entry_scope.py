"""Of a bank only what cameras see is worked on, and nothing comes out otherwise."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.memory.entries import append_entries
from worldstereo_jax.memory.entry_scope import read_in_view, slots_in_view, update_in_view
from worldstereo_jax.memory.entry_update import update_entries
from worldstereo_jax.memory.entry_warp import warp_entries

SIZE = {"height": es.HEIGHT, "width": es.WIDTH}


@pytest.fixture(scope="module")
def path(room):
    return es.cameras(room, 10)[[0, 3]]


@pytest.fixture(scope="module")
def stacked(room, path):
    images, depth = es.photographs(room, path)
    return es.frames(images, es.noisy(depth), path)


def moved(bank, away):
    places = {name: getattr(bank, name) + away for name in ("position", "anchor", "eye")}
    return dataclasses.replace(bank, **places)


@pytest.fixture(scope="module")
def wide(stacked):
    """What the first frame shows, between two copies of it that lie behind the cameras."""
    bank = es.build(stacked, [0])
    behind = moved(bank, -30.0)
    extend = jax.jit(lambda bank, other: append_entries(bank, other, other.valid))
    return extend(extend(behind, bank), behind)


def test_in_view_is_what_projects_into_a_picture(path):
    """Against numpy in double precision; what lies at a border may count."""
    random = np.random.default_rng(0)
    position = random.normal(0, 6, (4000, 3)).astype(np.float32)
    valid = random.random(4000) < 0.8
    lenses = np.broadcast_to(es.INTRINSICS, (2, 3, 3))
    seen, near = np.zeros((2, 4000), bool)
    for w2c, lens in zip(path.astype(float), lenses.astype(float), strict=True):
        local = position @ w2c[:3, :3].T + w2c[:3, 3]
        x, y, z = (local @ lens.T).T
        for margin, found in ((0.0, seen), (2.01, near)):
            inside = (x >= -margin * z) & (x < (es.WIDTH + margin) * z) & (z > 0)
            found |= valid & inside & (y >= -margin * z) & (y < (es.HEIGHT + margin) * z)
    look = jax.jit(functools.partial(slots_in_view, **SIZE), static_argnames="most")
    found = look(position, valid, path, lenses, most=3000)
    count = int(found.count)
    slot = np.asarray(found.slot)
    assert 100 < seen.sum() <= count <= near.sum() < 2000
    assert set(np.flatnonzero(seen)) <= set(slot[:count]) <= set(np.flatnonzero(near))
    assert (np.diff(slot[:count]) > 0).all()
    assert (slot[count:] == 4000).all()
    few = look(position, valid, path, lenses, most=100)
    assert int(few.count) == count
    np.testing.assert_array_equal(few.slot, slot[:100])


@pytest.mark.row("S10")
def test_an_update_of_what_is_in_view_is_that_of_the_whole_bank(wide, stacked):
    frame = es.one(stacked, 1)
    shown = int(wide.count) // 3
    assert shown < 2000 < int(wide.count)
    # In the last bank the copies stand where the camera looks: more than are looked at alone.
    for bank in (wide, moved(wide, jnp.where(wide.anchor[:, 2:] < 0, 30.0, 0.0))):
        whole = update_entries(bank, frame, rule=es.RULE)
        part = update_in_view(bank, frame, rule=es.RULE, most=2000)
        assert int(part.count) == int(whole.count) > int(wide.count)
        assert part.observations.sum() > 1.2 * shown
        for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.row("S10")
def test_only_entries_in_view_are_read_while_they_are_few(wide, path):
    cameras = jnp.asarray(path), jnp.broadcast_to(es.INTRINSICS, (2, 3, 3))

    def read(most):
        def count(bank):
            return bank.valid.sum(), jnp.asarray(bank.capacity)

        return [int(x) for x in read_in_view(count, wide, *cameras, **SIZE, most=most)]

    held = int(wide.valid.sum())
    seen, slots = read(2000)
    assert slots == 2000
    assert held / 4 < seen < held / 2
    assert read(64) == read(wide.capacity) == [held, wide.capacity]


@pytest.mark.row("S18")
def test_a_warp_of_what_is_in_view_is_that_of_the_whole_bank(wide, path):
    camera = jnp.asarray(path[1]), jnp.asarray(es.INTRINSICS)
    whole = warp_entries(wide, *camera, **SIZE)
    assert (np.asarray(whole.mask) < 0.5).mean() > 0.5

    @jax.jit
    def draw(bank):
        return read_in_view(
            lambda part: warp_entries(part, *camera, **SIZE),
            bank,
            camera[0][None],
            camera[1][None],
            **SIZE,
            most=2000,
        )

    for a, b in zip(jax.tree.leaves(draw(wide)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
