import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.memory import entry_appearance
from worldstereo_jax.memory.entries import init_entries
from worldstereo_jax.memory.entry_appearance import first_appearance, unexplained_variance
from worldstereo_jax.memory.entry_codec import quantise_entries, restore_entries
from worldstereo_jax.memory.entry_edit import merge_entries
from worldstereo_jax.memory.entry_warp import warp_entries

appearance_change = jax.jit(entry_appearance.appearance_change)

# Colour per unit of direction, at right angles to the line of sight: a wandering sheen.
SHEEN = np.array([[1.5, 0.3, 0.0], [0.0, 1.2, 0.2], [-1.0, 0.5, 0.0]])


def towards(centre, points):
    away = centre - points
    return away / np.linalg.norm(away, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def shots(room):
    """Views of the room from wide apart, all of whose colours go with the direction of view."""
    places = [[x, y, 0.0] for x in (-1.2, 0.0, 1.2) for y in (-0.9, 0.0, 0.9)]
    w2c = np.stack([room.look(place, [0.0, 0.4, 4.0]) for place in places]).astype(np.float32)
    images, depth = es.photographs(room, w2c)
    y, x = np.mgrid[: es.HEIGHT, : es.WIDTH] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(es.INTRINSICS).T
    c2w = np.linalg.inv(w2c)
    points = np.einsum("fij,fhwj->fhwi", c2w[:, :3, :3], rays * depth[..., None])
    centres = c2w[:, :3, 3]
    points += centres[:, None, None]
    plain = 0.3 * images
    return plain, depth, w2c, towards(centres[:, None, None], points) @ SHEEN.T


@pytest.fixture(scope="module")
def bank(shots):
    images, depth, w2c, shine = shots
    return es.build(es.frames(images + shine, depth, w2c))


def often_seen(bank):
    return np.asarray(bank.valid) & (np.asarray(bank.observations) >= 6)


@pytest.mark.row("S24")
@pytest.mark.row("S35")
def test_colours_go_with_the_view_as_they_were_seen_to(bank):
    """From two places where no frame was taken, colours differ as the truth does."""
    held = often_seen(bank)
    assert held.sum() > 300
    places = np.array([[0.7, -0.5, 0.1], [-0.8, 0.4, 0.0]], np.float32)
    found = [np.asarray(appearance_change(bank, jnp.asarray(p)))[held] for p in places]
    position = np.asarray(bank.position)[held]
    true = [towards(p, position) @ SHEEN.T for p in places]
    moved, truly = found[0] - found[1], true[0] - true[1]
    assert np.corrcoef(moved.ravel(), truly.ravel())[0, 1] > 0.95
    slope = (moved * truly).sum() / np.square(truly).sum()
    assert 0.75 < slope < 1.1
    # What follows the view is no contradiction.
    left = np.asarray(unexplained_variance(bank))[held]
    assert np.median(left / np.asarray(bank.feature_variance)[held]) < 0.2
    assert np.median(np.asarray(bank.confidence)[held]) > 0.8


@pytest.mark.row("S24")
@pytest.mark.row("S18")
def test_drawn_entries_have_the_colours_of_the_view(room, bank):
    """From a new place, against the truth there; mean colours alone are far off."""
    w2c = room.look([0.9, -0.6, 0.1], [0.0, 0.4, 4.0]).astype(np.float32)
    images, depth = es.photographs(room, w2c[None])
    y, x = np.mgrid[: es.HEIGHT, : es.WIDTH] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(es.INTRINSICS).T
    c2w = np.linalg.inv(w2c)
    points = (rays * depth[0][..., None]) @ c2w[:3, :3].T + c2w[:3, 3]
    true = 0.3 * images[0] + towards(c2w[:3, 3], points) @ SHEEN.T
    error = []
    for some in (bank, bank.replace(appearance=first_appearance(bank.direction))):
        camera = jnp.asarray(w2c), jnp.asarray(es.INTRINSICS)
        seen = warp_entries(some, *camera, height=es.HEIGHT, width=es.WIDTH)
        judged = (np.asarray(seen.mask) < 0.5) & (np.abs(true) < 1).all(-1)
        assert judged.mean() > 0.3
        error.append(np.median(np.abs(np.asarray(seen.features) - true)[judged]))
    assert error[0] < 0.5 * error[1], error


@pytest.mark.row("S24")
def test_chance_is_not_followed_but_lowers_confidence(shots, bank):
    images, depth, w2c, shine = shots
    deviation = shine.std()
    random = np.random.default_rng(0).normal(0, 1.6 * deviation, (*shine.shape[:1], 1, 1, 3))
    restless = es.build(es.frames(images + random, depth, w2c))
    steady = es.build(es.frames(images, depth, w2c))
    place = jnp.array([0.7, -0.5, 0.1])
    size = {}
    for name, some in (("sheen", bank), ("chance", restless), ("none", steady)):
        change = np.asarray(appearance_change(some, place))[often_seen(some)]
        variance = np.asarray(some.feature_variance)[often_seen(some)]
        size[name] = np.sqrt(np.square(change).mean() / variance.mean())
    assert size["chance"] < 0.6 * size["sheen"]
    assert np.abs(np.asarray(appearance_change(steady, place))[often_seen(steady)]).max() < 0.2
    trust = [np.median(np.asarray(x.confidence)[often_seen(x)]) for x in (bank, restless)]
    assert trust[1] < 0.75 * trust[0]


@pytest.mark.row("S24")
@pytest.mark.row("S33")
def test_two_banks_of_half_the_views_know_what_one_of_all_knows(shots, bank):
    images, depth, w2c, shine = shots
    stacked = es.frames(images + shine, depth, w2c)
    first = es.build(stacked, range(5))
    merged = merge_entries(first, es.build(stacked, range(5, 9)), rule=es.RULE)
    place = jnp.array([0.7, -0.5, 0.1])
    n = int(first.count)
    one, other = (np.asarray(appearance_change(x, place))[:n] for x in (bank, merged))
    held = (often_seen(bank) & often_seen(merged))[:n]
    assert held.sum() > 200
    assert np.corrcoef(one[held].ravel(), other[held].ravel())[0, 1] > 0.95


@pytest.mark.row("S24")
@pytest.mark.row("S38")
def test_a_turned_world_has_the_same_colours(room, shots, bank):
    images, depth, w2c, shine = shots
    there = room.look([1.0, 2.0, -3.0], [0.5, 1.0, 1.0])
    turned = es.build(es.frames(images + shine, depth, (w2c @ there).astype(np.float32)))
    place = np.array([0.7, -0.5, 0.1, 1.0])
    moved = np.linalg.inv(there) @ place
    found = [
        np.asarray(appearance_change(some, jnp.asarray(p[:3], jnp.float32)))
        for some, p in ((bank, place), (turned, moved))
    ]
    first = es.HEIGHT * es.WIDTH // 2  # of the first frame, in the same order
    same = np.asarray((bank.views == turned.views).all(-1) & bank.valid)[:first]
    assert same.mean() > 0.6
    np.testing.assert_allclose(found[0][:first][same], found[1][:first][same], atol=0.02)


@pytest.mark.row("S24")
@pytest.mark.row("S31")
def test_eight_bits_keep_the_change(bank):
    place = jnp.array([0.7, -0.5, 0.1])
    held = often_seen(bank)
    one, other = (
        np.asarray(appearance_change(x, place))[held]
        for x in (bank, restore_entries(quantise_entries(bank)))
    )
    assert np.sqrt(np.square(one - other).mean()) < 0.05 * np.sqrt(np.square(one).mean()) + 2e-3


def test_what_was_never_seen_has_no_change():
    empty = init_entries(es.CONFIG)
    found = appearance_change(empty, camera_centers(jnp.eye(4)))
    assert not np.asarray(found).any()
