import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.memory import entry_scene as es
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import project
from worldstereo_jax.memory.entries import init_entries
from worldstereo_jax.memory.entry_update import EntryRule, build_entries, update_entries
from worldstereo_jax.memory.entry_views import count_views


@pytest.fixture(scope="module")
def shots(room):
    w2c = es.cameras(room, 10)
    images, depth = es.photographs(room, w2c)
    return images, depth, w2c


@pytest.fixture(scope="module")
def stacked(shots):
    images, depth, w2c = shots
    return es.frames(images, es.noisy(depth), w2c)


@pytest.fixture(scope="module")
def bank(stacked):
    return es.build(stacked)


def _in_view(bank, frame, rows, columns):
    """Entries whose anchors lie in a rectangle of the frame."""
    pixel, z = project(bank.anchor, frame.w2c, frame.intrinsics)
    x, y = np.asarray(pixel).T
    inside = (x > columns[0]) & (x < columns[1]) & (y > rows[0]) & (y < rows[1])
    return inside & _held(bank), np.asarray(z)


def _held(bank):
    return np.asarray(bank.valid)


@pytest.mark.row("S12")
@pytest.mark.row("S3")
def test_the_error_of_fused_positions_falls_as_one_over_root_n(stacked, bank):
    rms = {}
    for n in (1, 4, 9):
        seen = _held(bank) & (np.asarray(bank.observations) >= n)
        part = es.build(stacked, range(n))
        seen = _held(part) & (np.asarray(part.observations) == n)
        assert seen.sum() > 300
        rms[n] = np.sqrt(np.mean(np.square(es.surface_error(part.position)[seen])))
    assert 0.40 < rms[4] / rms[1] < 0.62, rms
    assert 0.25 < rms[9] / rms[1] < 0.45, rms


@pytest.mark.row("S4")
@pytest.mark.row("S5")
def test_entries_know_their_surface_and_from_where_it_was_seen(shots):
    images, depth, w2c = shots
    found = es.build(es.frames(images[:4], depth[:4], w2c[:4]))
    held = _held(found)
    position, normal = np.asarray(found.position), np.asarray(found.normal)
    inner = held & (np.asarray(found.edge) == 0) & (np.abs(position[:, 0]) < 4)
    wall = inner & (np.abs(position[:, 2] - 6) < 0.01) & (position[:, 1] < 1.5)
    floor = inner & (np.abs(position[:, 1] - 2) < 0.01) & (position[:, 2] < 5.5)
    for place, facing in ((wall, [0, 0, -1]), (floor, [0, -1, 0])):
        assert place.sum() > 60
        assert np.median(normal[place] @ np.array(facing)) > 0.995
    # Where the frames stood that left a bit, and the sharpest of them.
    centre = np.linalg.inv(w2c[:4])[:, :3, 3]
    away = centre[None] - np.asarray(found.anchor)[:, None]
    distance = np.linalg.norm(away, axis=-1)
    saw = (np.asarray(found.views)[:, :1] >> np.arange(4)) & 1
    share = saw / np.maximum(saw.sum(1, keepdims=True), 1)
    direction = (share[..., None] * away / distance[..., None]).sum(1)
    np.testing.assert_allclose(np.asarray(found.direction)[held], direction[held], atol=1e-3)
    mean = (share * distance).sum(1)
    np.testing.assert_allclose(np.asarray(found.distance)[held], mean[held], rtol=1e-3)
    z = np.einsum("vj,nj->nv", w2c[:4, 2, :3], np.asarray(found.anchor)) + w2c[:4, 2, 3]
    sharpest = np.where(saw > 0, z, np.inf).min(1) / 42.0
    np.testing.assert_allclose(np.asarray(found.footprint)[held], sharpest[held], rtol=0.06)


@pytest.mark.row("S12")
@pytest.mark.row("S1")
def test_noise_in_features_is_averaged_away(shots):
    images, depth, w2c = shots
    random = np.random.default_rng(1)
    grainy = images[:1] + 0.2 * random.standard_normal((9, *images.shape[1:])).astype(np.float32)
    same = np.repeat(depth[:1], 9, 0), np.repeat(w2c[:1], 9, 0)
    clean = es.build(es.frames(images[:1], *(x[:1] for x in same)))
    first = es.build(es.frames(grainy[:1], *(x[:1] for x in same)))
    fused = es.build(es.frames(grainy, *same))
    held = _held(clean)
    # The coarsest level has too few cells here to tell an average by.
    for level in range(2):
        error = [
            np.sqrt(np.mean(np.square(np.asarray(x.features[level] - clean.features[level])[held])))
            for x in (first, fused)
        ]
        assert 0.25 < error[1] / error[0] < 0.42


@pytest.mark.row("S12")
@pytest.mark.row("S6")
@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
@pytest.mark.parametrize("place", [0, 5])
def test_wrong_depth_in_one_view_of_ten_is_voted_down(shots, bank, factor, place):
    images, depth, w2c = shots
    depth = es.noisy(depth)
    depth[place] *= factor
    found = es.build(es.frames(images, depth, w2c))
    held, confidence = _held(found), np.asarray(found.confidence)
    wrong = held & (np.asarray(found.views[:, 0]) == 1 << place)
    wrong &= es.surface_error(found.position) > 0.15
    good = held & (count_views(found.views) >= 6)
    assert wrong.sum() > 200
    assert np.median(confidence[good]) > 0.6
    assert np.median(confidence[wrong]) < 0.1
    # Weighted by confidence, the wrong view hardly shows; unopposed it would be a third.
    share = confidence[wrong].sum() / confidence[held].sum()
    assert share < 0.08
    clean = _held(bank) & (count_views(bank.views) >= 6)
    rms = [
        np.sqrt(np.mean(np.square(es.surface_error(x.position)[at])))
        for x, at in ((found, good), (bank, clean))
    ]
    assert rms[0] < 1.2 * rms[1]


def _copied(frame, view, confidence=0.8, **change):
    """A frame whose depth was read from the memory, with another number."""
    return dataclasses.replace(
        frame,
        view=jnp.asarray(view, jnp.int32),
        measured=jnp.zeros_like(frame.measured),
        confidence=confidence * jnp.ones_like(frame.confidence),
        **change,
    )


@pytest.mark.row("S6")
@pytest.mark.row("S12")
def test_a_wrong_patch_that_is_read_and_written_back_gains_nothing(shots):
    """Too near in one view; four clips read its depth, then another view measures."""
    images, depth, w2c = shots
    depth = depth[:2].copy()
    patch = np.s_[0, 10:22, 14:34]
    depth[patch] *= 0.9
    first, second = (es.one(es.frames(images[:2], depth, w2c[:2]), i) for i in (0, 1))
    begun = update_entries(init_entries(es.CONFIG), first, rule=es.RULE)
    held = _held(begun)
    looked_again = {
        "copies": [_copied(first, 2 + i) for i in range(4)],
        "witnesses": [dataclasses.replace(first, view=jnp.asarray(2 + i)) for i in range(4)],
    }
    # What reads it wrongly from elsewhere denies nothing either.
    looked_again["copies"].append(_copied(first, 6, depth=1.2 * first.depth))
    confidence = {}
    for name, frames in looked_again.items():
        grown = functools.reduce(lambda x, y: update_entries(x, y, rule=es.RULE), frames, begun)
        if name == "copies":
            for field in ("position", "support", "information", "scatter", "denied", "against"):
                left, right = (np.asarray(getattr(x, field))[held] for x in (begun, grown))
                np.testing.assert_array_equal(left, right, err_msg=field)
            np.testing.assert_allclose(grown.normal[held], begun.normal[held], atol=1e-6)
            # They did show it.
            assert (np.asarray(grown.observations)[held] == 5).mean() > 0.95
            assert (np.asarray(count_views(grown.views))[held] == 5).mean() > 0.95
            again = update_entries(grown, frames[0], rule=es.RULE)
            es.assert_equal_banks(again, grown)
        judged = update_entries(grown, second, rule=es.RULE)
        pixel, _ = project(begun.anchor, first.w2c, first.intrinsics)
        x, y = np.floor(np.asarray(pixel)).astype(int).T
        wrong = held & (y >= 11) & (y < 21) & (x >= 15) & (x < 33)
        denied = wrong & (np.asarray(judged.against) > 0.5)
        assert denied.sum() > 100
        confidence[name] = [
            np.median(np.asarray(k.confidence)[denied]) for k in (begun, grown, judged)
        ]
    before, read, after = confidence["copies"]
    assert after < 0.3 < read <= before
    before, read, after = confidence["witnesses"]
    assert read > before
    assert after > 0.5


@pytest.mark.row("S6")
@pytest.mark.row("S12")
def test_what_was_read_is_as_sure_as_what_it_was_read_from_until_it_is_measured(stacked):
    frame, empty = es.one(stacked, 0), init_entries(es.CONFIG)
    copy = _copied(frame, 7, 0.3)

    def grown(*frames):
        return functools.reduce(lambda x, y: update_entries(x, y, rule=es.RULE), frames, empty)

    read, measured = grown(copy), grown(frame)
    held = _held(read)
    assert held.sum() > 1000
    # Drawn, but as doubtful as one look of that confidence; more such looks do not help.
    np.testing.assert_allclose(read.confidence[held], 0.3 / (0.3 + 0.25), rtol=1e-5)
    more = grown(copy, _copied(frame, 8, 0.3), _copied(frame, 9, 0.2))
    np.testing.assert_allclose(more.confidence[held], read.confidence[held], rtol=1e-3)
    # Either way round a measurement is what it is alone.
    for both in (grown(copy, frame), grown(frame, copy)):
        for field in ("position", "support", "information", "normal", "confidence"):
            left, right = (np.asarray(getattr(x, field))[held] for x in (measured, both))
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5, err_msg=field)
        np.testing.assert_allclose(np.asarray(both.inherited)[held], 0.3, rtol=1e-6)
        assert int(both.count) == int(measured.count)


@pytest.mark.row("S12")
def test_the_same_frame_twice_changes_nothing(stacked):
    once = es.build(stacked, [0, 1, 2])
    es.assert_equal_banks(once, es.build(stacked, [2], once))
    # Once more after others: no entry is added.
    again = es.build(stacked, [0, 1], once)
    assert int(again.count) == int(once.count)


@pytest.mark.row("S12")
def test_the_order_of_frames_does_not_matter(stacked):
    start = es.build(stacked, [0])
    held = _held(start)
    one, other = (es.build(stacked, order, start) for order in ([1, 2, 3, 4], [3, 1, 4, 2]))
    same = np.asarray((one.views == other.views).all(-1) & (one.denied == other.denied).all(-1))
    assert same[held].all()
    for name in (
        "position",
        "normal",
        "confidence",
        "footprint",
        "direction",
        "scatter",
        "appearance",
        "edge",
        "through",
        "beyond",
    ):
        left, right = np.asarray(getattr(one, name)), np.asarray(getattr(other, name))
        np.testing.assert_allclose(left[held], right[held], atol=3e-5, err_msg=name)
    for left, right in zip(one.features, other.features, strict=True):
        np.testing.assert_allclose(np.asarray(left)[held], np.asarray(right)[held], atol=3e-5)
    # Which of two frames puts the entries that neither found differs; how many hardly does.
    new = [int(x.count) - held.sum() for x in (one, other)]
    assert abs(new[0] - new[1]) < 0.15 * max(new)


@pytest.mark.row("S38")
def test_a_moved_and_scaled_world_gives_the_moved_and_scaled_bank(room, shots):
    images, depth, w2c = shots
    depth = es.noisy(depth)[:3]
    there = room.look([1.0, 2.0, -3.0], [0.5, 1.0, 1.0])
    for scale in (0.01, 1.0, 250.0):
        moved = (w2c[:3].astype(np.float64) @ there).astype(np.float32)
        back = np.linalg.inv(there)
        plain = es.build(es.frames(images[:3], depth, w2c[:3]))
        far = es.build(es.frames(images[:3], depth, moved, scale=scale))
        # Rounding may tip single entries over a threshold.
        n = int(plain.count)
        assert abs(int(far.count) - n) <= 0.01 * n
        # Entries of the first frame come in the same order.
        first = int(es.build(es.frames(images[:1], depth[:1], w2c[:1])).count)
        bits = np.asarray((plain.views == far.views).all(-1))[:first]
        assert bits.mean() > 0.99
        position = np.asarray(plain.position) @ back[:3, :3].T + back[:3, 3]
        np.testing.assert_allclose(
            (np.asarray(far.position) / scale)[:first][bits], position[:first][bits], atol=2e-3
        )
        np.testing.assert_allclose(
            np.asarray(far.confidence)[:first][bits],
            np.asarray(plain.confidence)[:first][bits],
            atol=2e-3,
        )
        ratio = np.asarray(far.footprint)[:first] / np.asarray(plain.footprint)[:first]
        np.testing.assert_allclose(ratio, scale, rtol=1e-4)


@pytest.mark.row("S34")
def test_what_is_hidden_is_not_punished(room):
    w2c = np.stack([room.look([x, -0.3, 0.0], [0.0, 0.4, 4.0]) for x in (-2.0, 2.0)])
    images, depth = es.photographs(room, w2c)
    both = es.frames(images, depth, w2c)
    before, after = es.build(both, [0]), es.build(both)
    pixel, z = project(before.anchor, both.w2c[1], both.intrinsics[1])
    x, y = np.floor(np.asarray(pixel)).astype(int).T
    inside = _held(before) & (x >= 0) & (x < es.WIDTH) & (y >= 0) & (y < es.HEIGHT)
    shown = depth[1][np.clip(y, 0, es.HEIGHT - 1), np.clip(x, 0, es.WIDTH - 1)]
    hidden = np.flatnonzero(inside & (np.asarray(z) > 1.25 * shown))
    assert len(hidden) > 25
    punished = np.asarray(after.against)[hidden] > 0
    assert punished.mean() < 0.03
    np.testing.assert_array_equal(
        np.asarray(after.confidence)[hidden][~punished],
        np.asarray(before.confidence)[hidden][~punished],
    )


@pytest.mark.row("S6")
def test_what_has_moved_away_loses_confidence(shots):
    images, depth, w2c = shots
    box = depth[:2].copy()
    box[0, 10:22, 16:32] = 2.0
    both = es.frames(images[:2], box, w2c[:2])
    before, after = es.build(both, [0]), es.build(both)
    at, z = _in_view(before, es.one(both, 0), (12, 20), (18, 30))
    at &= z < 2.1
    assert at.sum() == 8 * 12
    assert (np.asarray(before.confidence)[at] > 0.7).all()
    # All but a few that the second frame's own silhouettes leave open.
    assert (np.asarray(after.against)[at] > 0.9).mean() > 0.9
    assert (np.asarray(after.confidence)[at] < 0.3).mean() > 0.9


@pytest.mark.row("S6")
@pytest.mark.row("S24")
def test_what_looks_different_from_everywhere_loses_confidence(shots):
    images, depth, w2c = shots
    restless = images.copy()
    random = np.random.default_rng(2)
    restless[:, 8:24, 12:36] = random.uniform(-1, 1, (10, 1, 1, 3))
    same = np.repeat(depth[:1], 10, 0), np.repeat(w2c[:1], 10, 0)
    frames = es.frames(np.where(restless == images, images[:1], restless), *same)
    found = es.build(frames)
    confidence = np.asarray(found.confidence)
    mirror, _ = _in_view(found, es.one(frames, 0), (9, 23), (13, 35))
    calm, _ = _in_view(found, es.one(frames, 0), (0, 7), (0, 48))
    assert mirror.sum() > 200
    assert confidence[mirror].mean() < 0.45
    assert np.median(confidence[calm]) > 0.9


@pytest.mark.row("S36")
def test_nothing_valid_and_almost_nothing_valid_give_no_nan(stacked, shots):
    images, depth, w2c = shots
    start = es.build(stacked, [0])
    none = np.zeros_like(depth[:1])
    es.assert_equal_banks(
        start, es.build(es.frames(images[:1], none, w2c[:1], views=[7]), [0], start)
    )
    broken = np.full_like(none, np.nan)
    broken[0, :2] = np.inf
    broken[0, 2:4] = -3.0
    confidence = np.ones_like(none)
    bad = es.frames(images[:1], broken, w2c[:1], confidence=confidence)
    assert int(es.build(bad).count) == 0
    es.assert_finite(es.build(bad, [0], start))
    single = none.copy()
    single[0, 5, 7] = 2.0
    found = es.build(es.frames(images[:1], single, w2c[:1]))
    assert int(found.count) == 1
    es.assert_finite(found)
    doubtful = es.frames(images[:1], depth[:1], w2c[:1], confidence=none)
    assert int(es.build(doubtful).count) == 0
    half = depth.copy()
    half[::2, :, :24] = 0
    half[1::2, :, 24:] = 0
    es.assert_finite(es.build(es.frames(images, half, w2c), range(4)))


@pytest.mark.row("S11")
def test_what_finds_no_room_is_counted(stacked):
    nearly_full = init_entries(es.CONFIG).replace(count=jnp.asarray(5900, jnp.int32))
    found = es.build(stacked, [0], nearly_full)
    free = es.build(stacked, [0])
    assert int(found.count) == 6000
    assert int(found.overflow) == int(free.count) - 100 > 0
    np.testing.assert_array_equal(found.position[5900:], free.position[:100])
    # Nothing of the overflow is written anywhere.
    assert not _held(found)[:5900].any()


@pytest.mark.row("S12")
def test_a_donated_scan_is_the_loop(stacked):
    few = jax.tree.map(lambda x: x[:4], stacked)
    run = jax.jit(functools.partial(build_entries, rule=es.RULE), donate_argnums=0)
    scanned = run(init_entries(es.CONFIG), few)
    looped = es.build(few)
    assert int(scanned.count) == int(looped.count)
    np.testing.assert_array_equal(scanned.views, looped.views)
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(looped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.row("S12")
def test_sharded_by_entry_over_eight_devices_is_one_device(stacked, bank):
    assert len(jax.devices()) >= 8
    mesh = Mesh(np.array(jax.devices()[:8]), ("entries",))

    def place(leaf):
        spec = PartitionSpec("entries") if leaf.ndim else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    start = es.build(stacked, [0, 1])
    frame = jax.device_put(es.one(stacked, 2), NamedSharding(mesh, PartitionSpec()))
    spread = update_entries(jax.tree.map(place, start), frame, rule=es.RULE)
    assert len(spread.position.sharding.device_set) == 8
    alone = es.build(stacked, [2], start)
    assert int(spread.count) == int(alone.count)
    for a, b in zip(jax.tree.leaves(spread), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)


@pytest.mark.row("S10")
def test_only_the_candidates_need_to_be_looked_at(stacked):
    start = es.build(stacked, [0, 1])
    elsewhere = start.replace(valid=start.valid.at[:100].set(False))
    index = jnp.concatenate([jnp.arange(100, 4000), jnp.full((100,), -1)])
    run = functools.partial(update_entries, elsewhere, es.one(stacked, 2), rule=es.RULE)
    es_all, some = run(), run(candidates=index)
    assert int(es_all.count) == int(some.count)
    for a, b in zip(jax.tree.leaves(es_all), jax.tree.leaves(some), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_rule_that_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="noise"):
        EntryRule(noise=0.0)


@pytest.mark.row("S13")
def test_a_held_view_is_covered_ever_better(room, stacked):
    held = room.look([0.1, -0.1, 0.1], [0.1, 0.4, 4.0]).astype(np.float32)
    _, depth = es.photographs(room, held[None])
    shares, errors = [], []
    for n in (1, 2, 4, 7, 10):
        bank = es.build(stacked, range(n))
        pixel, z = project(bank.position, jnp.asarray(held), jnp.asarray(es.INTRINSICS))
        x, y = np.floor(np.asarray(pixel)).astype(int).T
        z, confident = np.asarray(z), np.asarray(bank.confidence) > 0.5
        inside = _held(bank) & confident & (z > 0) & (x >= 0) & (x < 48) & (y >= 0) & (y < 32)
        x, y, z = x[inside], y[inside], z[inside]
        away = np.abs(z / depth[0, y, x] - 1)
        best = np.full(depth[0].shape, np.inf)
        np.minimum.at(best, (y, x), away)
        right = best < 0.03
        shares.append(right.mean())
        errors.append(np.median(away[away < 0.1]))
    assert shares[0] > 0.6
    assert shares[-1] > 0.85
    assert all(b >= a - 0.005 for a, b in itertools.pairwise(shares)), shares
    assert all(b <= 1.03 * a for a, b in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.6 * errors[0], errors


@pytest.mark.row("S5")
def test_frames_without_a_bit_are_fused_and_counted(stacked):
    """The bitset has 64 places: view 64 is not taken for view 0, and is not lost silently."""
    beyond = stacked.replace(view=stacked.view + 63)
    bank = es.build(beyond, [0, 1])
    named = es.build(stacked, [0, 1])
    assert (int(named.uncounted), int(bank.uncounted)) == (0, 1)
    assert int(bank.count) == int(named.count)
    np.testing.assert_array_equal(bank.observations, named.observations)
    first = np.asarray(named.views[:, 0]) & 1
    np.testing.assert_array_equal(bank.views, np.stack([0 * first, first << 31], -1))
    again = es.build(beyond, [1], bank)
    assert (int(again.uncounted), int(again.count)) == (2, int(bank.count))


def test_features_of_other_widths_than_the_banks_are_refused(stacked):
    narrow = init_entries(dataclasses.replace(es.CONFIG, widths=(5, 6)))
    with pytest.raises(InputError, match=r"widths \(27, 27, 27\), but the bank holds \(5, 6\)"):
        update_entries(narrow, es.one(stacked, 0))


def test_a_scan_over_frames_keeps_its_types_where_float64_is_enabled(stacked):
    """The bank is float32 and stays so, whatever numpy's arrays are."""
    with jax.enable_x64(True):
        bank = init_entries(es.CONFIG)
        after = jax.eval_shape(build_entries, bank, stacked)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), bank) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )
