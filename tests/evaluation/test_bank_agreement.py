import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.data.pane_scenes import make_pane_scene, render_pane
from worldstereo_jax.evaluation.bank_agreement import (
    VERDICTS,
    agreement_picture,
    clip_agreement,
    entry_agreement,
)


@pytest.fixture(scope="module")
def taken():
    """A wall alone, seen from ten places; on a patch of it every view shows another colour."""
    places = [(0.5 * np.cos(2.4 * i), 0.4 * np.sin(2.4 * i)) for i in range(10)]
    w2c = np.tile(np.eye(4, dtype=np.float32), (10, 1, 1))
    w2c[:, :2, 3] = -np.asarray(places)
    lenses = np.tile(es.INTRINSICS, (10, 1, 1))
    scene = make_pane_scene(2)
    scene = type(scene)(waves=scene.waves, tint=scene.tint, opacity=0.0)
    views = render_pane(scene, w2c, lenses, height=es.HEIGHT, width=es.WIDTH)
    images = views.image.copy()
    random = np.random.default_rng(0)
    y, x = np.mgrid[: es.HEIGHT, : es.WIDTH] + 0.5
    for i, place in enumerate(places):
        at = [(x - es.WIDTH / 2) * 4 / 42 + place[0], (y - es.HEIGHT / 2) * 4 / 42 + place[1]]
        images[i][(np.abs(at[0]) < 0.5) & (np.abs(at[1]) < 0.5)] = random.uniform(-1, 1, 3)
    depth = es.noisy(views.behind, noise=0.002)
    return images, w2c, lenses, es.build(es.frames(images, depth, w2c))


@pytest.mark.row("S25")
def test_verdicts_tell_what_changes_from_what_stays(taken):
    bank = taken[3]
    found = entry_agreement(bank)
    position, often = np.asarray(bank.position), np.asarray(bank.observations) >= 6
    often &= np.asarray(bank.valid)
    patch = often & (np.abs(position[:, :2]) < 0.4).all(1)
    calm = often & (np.abs(position[:, :2]) > 0.7).any(1)
    assert min(patch.sum(), calm.sum()) > 30
    verdict = np.asarray(found.verdict)
    assert (verdict[patch] == VERDICTS.index("restless")).mean() > 0.9
    assert (verdict[calm] == VERDICTS.index("consistent")).mean() > 0.8
    residual = np.asarray(found.colour)
    assert np.median(residual[patch]) > 5 * np.median(residual[calm])
    assert (verdict[~np.asarray(bank.valid)] == -1).all()
    assert np.median(np.asarray(found.position)[calm]) < 0.01


@pytest.mark.row("S25")
def test_entries_voted_down_and_single_ones_are_named(taken):
    bank = taken[3]
    at = jnp.arange(bank.capacity)
    changed = bank.replace(
        against=jnp.where(at == 0, bank.support, bank.against),
        observations=jnp.where(at == 1, 1, bank.observations),
    )
    verdict = np.asarray(entry_agreement(changed).verdict)
    assert [VERDICTS[v] for v in verdict[:2]] == ["contradicted", "seen once"]


@pytest.mark.row("S25")
@pytest.mark.row("S35")
def test_a_clip_that_departs_from_the_bank_shows_in_the_map(taken):
    images, w2c, lenses, bank = taken
    clip = images[[1, 3]].copy()
    clip[1, 4:10, 4:12] = -clip[1, 4:10, 4:12]  # something else than was there
    clip[0] = (clip[0] + 1) * 0.7 - 1  # another exposure is no contradiction
    cameras = jnp.asarray(w2c[[1, 3]]), jnp.asarray(lenses[[1, 3]])
    found = clip_agreement(jnp.asarray(clip), *cameras, bank)
    compared = np.asarray(found.compared)
    assert compared.mean() > 0.8
    away = np.asarray(found.difference)
    wrong = compared[1, 4:10, 4:12]
    assert wrong.mean() > 0.8
    plain = np.median(away[compared])
    assert np.median(away[1, 4:10, 4:12][wrong]) > 4 * plain
    assert np.median(away[0][compared[0]]) < 2 * plain
    assert not away[~compared].any()
    picture = agreement_picture(clip, found)
    assert picture.shape[2] == 3
    assert picture.shape[0] > 400
