import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.memory import coverage, visibility
from worldstereo_jax.memory.coverage import retrieve_by_coverage
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory, insert_keyframes

view_coverage = jax.jit(coverage.view_coverage)


@pytest.fixture(scope="module")
def memory(room):
    """Views 0-3 of the room, and 4: the target's own camera turned to look at the side wall."""
    bank = room.bank
    memory = init_spatial_memory(8, 80, 112)
    memory = insert_keyframes(memory, bank.images, bank.depth, bank.w2c, bank.intrinsics)
    away = room.look([0.15, -0.2, 0.25], [-4.0, 0.4, 0.3])
    image, depth = room.take(away, room.intrinsics)
    return insert_keyframes(
        memory,
        jnp.asarray(image)[None],
        jnp.asarray(depth)[None],
        jnp.asarray(away, jnp.float32)[None],
        bank.intrinsics[:1],
    )


def _retrieve(memory, room, count, **options):
    run = jax.jit(functools.partial(retrieve_by_coverage, count=count, **options))
    return run(memory, room.target.w2c, room.target.intrinsics)


@pytest.mark.row("S26")
def test_views_that_show_the_path_are_chosen_and_others_are_not(memory, room):
    found = _retrieve(memory, room, 6)
    chosen = np.asarray(found.index)[np.asarray(found.valid)]
    assert set(chosen) == {0, 1, 2, 3}
    assert len(set(chosen)) == len(chosen)
    assert (np.asarray(found.index) < 5).all()


@pytest.mark.row("S26")
def test_of_equals_what_was_measured_comes_before_what_was_read(room):
    bank, memory = room.bank, init_spatial_memory(8, 80, 112)
    for source, kept in ((0, slice(1, 2)), (1, slice(1, 3))):
        parts = bank.images[kept], bank.depth[kept], bank.w2c[kept], bank.intrinsics[kept]
        measured = jnp.full(parts[1].shape, source == 1)
        memory = insert_keyframes(memory, *parts, measured=measured, source=source)
    assert int(_retrieve(memory.replace(measured=~memory.measured), room, 1).index[0]) == 0
    found = _retrieve(memory, room, 8)
    assert 0 not in np.asarray(found.index)[np.asarray(found.valid)]


@pytest.mark.row("S26")
def test_the_choice_is_the_greedy_one(memory, room):
    shown = np.asarray(view_coverage(memory, room.target.w2c, room.target.intrinsics))
    shown = np.moveaxis(shown, 1, 0).reshape(8, -1)
    best, wanted = np.zeros(shown.shape[1]), []
    for _ in range(3):
        gain = [
            -1.0 if v in wanted or v > 4 else np.maximum(shown[v] - best, 0).sum() for v in range(8)
        ]
        wanted.append(int(np.argmax(gain)))
        best = np.maximum(best, shown[wanted[-1]])
    found = _retrieve(memory, room, 3)
    np.testing.assert_array_equal(found.index, wanted)
    assert np.maximum(*(shown[v] for v in wanted[:2])).sum() > 0.7 * shown.max(0).sum()


@pytest.mark.row("S12")
@pytest.mark.row("S26")
def test_a_view_whose_depth_others_refute_earns_nothing_and_hides_nothing(memory, room):
    targets = room.target.w2c, room.target.intrinsics
    right = np.asarray(view_coverage(memory, *targets))
    nearer = memory.replace(depth=memory.depth.at[1].multiply(0.8))
    found = np.asarray(view_coverage(nearer, *targets))
    assert found[:, 1].sum() < 0.1 * right[:, 1].sum()
    others = [0, 2, 3]
    assert found[:, others].sum() > 0.9 * right[:, others].sum()


@pytest.mark.row("S12")
def test_few_views_are_judged_by_all_and_of_many_by_those_that_look_there(memory, monkeypatch):
    square = np.s_[10:30, 40:70]
    wrong = memory.replace(depth=memory.depth.at[(1, *square)].multiply(0.85))
    asked = jnp.array([1, 2], jnp.int32)
    by_all = np.asarray(jax.jit(coverage.refuted_pixels)(wrong, asked))
    assert by_all[0][square].mean() > 0.9
    assert by_all[1].mean() < 0.05
    # Four of the eight, of which one looks aside, are enough; a view by itself says nothing.
    monkeypatch.setattr(visibility, "JUDGES", 4)
    by_some = np.asarray(jax.jit(lambda m: coverage.refuted_pixels(m, asked))(wrong))
    assert by_some[0][square].mean() > 0.9
    assert (by_some == by_all).mean() > 0.98


@pytest.mark.row("S34")
def test_a_view_of_what_is_hidden_earns_nothing(room):
    """A camera behind the near box, which looks at its back and the wall hidden by it."""
    behind = room.look([1.15, 1.6, 3.72], [1.15, 1.6, 3.9])
    image, depth = room.take(behind, room.intrinsics)
    front = room.look([1.15, 1.4, 1.4], [1.15, 1.4, 3])
    memory = insert_keyframes(
        init_spatial_memory(2, 80, 112),
        jnp.asarray(image)[None],
        jnp.asarray(depth)[None],
        jnp.asarray(behind, jnp.float32)[None],
        room.bank.intrinsics[:1],
    )
    shown = view_coverage(memory, jnp.asarray(front, jnp.float32)[None], room.bank.intrinsics[:1])
    own = room.take(front, room.intrinsics)[1]
    box = np.abs(own - 1.5) < 0.05
    cells = box.reshape(10, 8, 14, 8).all((1, 3)).reshape(-1)
    assert cells.sum() > 20
    memory = insert_keyframes(
        memory,
        jnp.zeros((1, 80, 112, 3)),
        jnp.asarray(own)[None],
        jnp.asarray(front, jnp.float32)[None],
        room.bank.intrinsics[:1],
    )
    shown = view_coverage(memory, jnp.asarray(front, jnp.float32)[None], room.bank.intrinsics[:1])
    assert float(np.asarray(shown)[0, 0, cells].max()) == 0.0
    assert float(np.asarray(shown)[0, 1, cells].min()) > 0.9
    # Nor does it when the target comes ten times as close, and the box's points lie far apart.
    close = room.look([1.15, 1.4, 2.75], [1.15, 1.4, 3])
    shown = view_coverage(memory, jnp.asarray(close, jnp.float32)[None], room.bank.intrinsics[:1])
    assert float(np.asarray(shown)[0, 0].max()) == 0.0
    assert float(np.asarray(shown)[0, 1].min()) > 0.08


@pytest.mark.row("S26")
def test_a_slanted_or_doubtful_view_counts_less_than_a_frontal_one(room):
    """A wall from the front, and from nearer by, but 75 degrees aside."""
    slant, near, far = np.radians(75), 3.8, 4.6
    aside = [-near * np.sin(slant), 0.0, 4.0 - near * np.cos(slant)]
    cameras = [room.look([0, 0, 4.0 - far], [0, 0, 4]), room.look(aside, [0, 0, 4])]
    y, x = np.mgrid[:80, :112] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(room.intrinsics).T
    depth = []
    for w2c in cameras:
        c2w = np.linalg.inv(w2c)
        towards = (rays @ c2w[:3, :3].T)[..., 2]
        depth.append(np.where(towards > 0.02, (4.0 - c2w[2, 3]) / np.maximum(towards, 0.02), 0.0))
    memory = init_spatial_memory(2, 80, 112).replace(
        depth=jnp.asarray(np.stack(depth), jnp.float32),
        confidence=jnp.ones((2, 80, 112)),
        w2c=jnp.asarray(np.stack(cameras), jnp.float32),
        intrinsics=room.bank.intrinsics[:2],
        valid=jnp.ones((2,), bool),
    )

    def found(memory, w2c):
        shown = view_coverage(memory, jnp.asarray(w2c, jnp.float32)[None], memory.intrinsics[:1])
        # Of the cells in the middle, of which those seen at a slant lie apart, the best.
        return np.asarray(shown).reshape(2, 10, 14)[:, 4:6, 6:8].max((1, 2))

    shown = found(memory, np.eye(4))
    np.testing.assert_allclose(shown, [4 / far, 4 / near * np.cos(slant)], rtol=0.15)
    doubted = found(memory.replace(confidence=memory.confidence.at[0].set(0.2)), np.eye(4))
    np.testing.assert_allclose(doubted, [0.2 * shown[0], shown[1]], rtol=1e-5)
    # A target as far aside needs no more than the view beside it shows.
    shown = found(memory, room.look(1.2 * np.array(aside) - [0, 0, 0.8], [0, 0, 4]))
    assert shown[1] > 0.95


@pytest.mark.row("S30")
def test_the_first_view_can_be_protected(memory, room):
    plain = _retrieve(memory, room, 1)
    protected = _retrieve(memory, room, 2, protect_first=True)
    assert int(plain.index[0]) != 0
    np.testing.assert_array_equal(protected.index[0], 0)
    assert bool(protected.valid.all())


def test_an_empty_bank_gives_nothing_valid(room):
    found = _retrieve(init_spatial_memory(8, 80, 112), room, 3)
    assert not bool(found.valid.any())
    np.testing.assert_array_equal(found.index, 0)
