"""Entries are found in pictures whose depth nobody knows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import unproject
from worldstereo_jax.memory.entries import append_entries
from worldstereo_jax.memory.entry_correspondence import match_entries, pattern_code
from worldstereo_jax.memory.entry_features import PYRAMID, Level, feature_pyramid

_read = jax.jit(feature_pyramid, static_argnames="levels")


@pytest.fixture(scope="module")
def pixels(scene):
    """Every third pixel whose neighbourhood is mostly seen."""
    _, height, width = scene["depth"].shape
    y, x = np.mgrid[6 : height - 6 : 3, 6 : width - 6 : 3] + 0.5
    return np.stack([x, y], -1).reshape(-1, 2).astype(np.float32)


@pytest.fixture(scope="module")
def find(scene, pixels):
    _, height, width = scene["depth"].shape
    match = functools.partial(match_entries, height=height, width=width)

    def run(bank, image, **options):
        return match(bank, _read(jnp.asarray(image)), pixels, **options)

    return run


def misses(bank, matches, scene, frame, pixels):
    """Distance of each match from the surface that is really there, in pixels."""
    depth = np.asarray(scene["depth"][frame])[tuple(pixels[:, ::-1].astype(int).T)]
    lens = scene["intrinsics"][frame]
    true = unproject(jnp.asarray(pixels), jnp.asarray(depth), scene["w2c"][frame], lens)
    away = np.linalg.norm(np.asarray(bank.position[matches.entry] - true.reshape(-1, 3)), axis=-1)
    return away / depth * float(lens[0, 0])


@pytest.mark.row("S2")
@pytest.mark.row("S10")
@pytest.mark.parametrize("exposure", [(1.0, 0.0), (0.7, -0.1)], ids=["same", "darker"])
def test_pixels_find_the_entries_they_show_by_looks_alone(memory, scene, pixels, find, exposure):
    bank = memory.entries
    for frame in (1, 2):
        gain, shift = exposure
        found = find(bank, gain * scene["image"][frame] + shift)
        valid = np.asarray(found.valid)
        assert valid.mean() > 0.65
        assert (misses(bank, found, scene, frame, pixels)[valid] < 3).mean() > 0.92
        assert bank.valid[found.entry].all()
        np.testing.assert_array_equal(np.asarray(found.weight) > 0, valid)


@pytest.mark.row("S10")
@pytest.mark.row("S37")
def test_what_looks_alike_elsewhere_is_no_match_unless_a_camera_tells(memory, scene, pixels, find):
    """The world and a copy of it ten metres above: each pixel may show either."""
    bank = memory.entries
    above = dataclasses.replace(bank, position=bank.position + jnp.array([[0.0, -10.0, 0.0]]))
    both = jax.jit(append_entries)(
        dataclasses.replace(bank, count=jnp.asarray(bank.capacity // 2, jnp.int32)),
        above,
        bank.valid,
    )
    assert int(both.valid.sum()) == 2 * int(bank.valid.sum())
    image, camera = scene["image"][1], (scene["w2c"][1], scene["intrinsics"][1])
    assert not find(both, image).valid.any()
    found = find(both, image, camera=camera)
    valid = np.asarray(found.valid)
    assert valid.mean() > 0.65
    assert (misses(both, found, scene, 1, pixels)[valid] < 3).mean() > 0.92
    # Nothing is in view of a camera that looks the other way.
    back = jnp.diag(jnp.array([-1.0, 1.0, -1.0, 1.0])) @ camera[0]
    assert not find(both, image, camera=(back, camera[1])).valid.any()


@pytest.mark.row("S2")
def test_codes_forget_exposure_and_hold_what_was_learned():
    random = np.random.default_rng(0)
    levels = (Level("fine", 1, 3), Level("wide", 4, 3, learned=True))
    fine, wide = (random.normal(0, 0.5, (50, width)).astype(np.float32) for width in (27, 32))
    gains = np.tile([0.6, 0.8, 0.7], 9).astype(np.float32)
    relit = (0.7 * fine - 0.2, np.concatenate([0.7 * wide[:, :27] + 0.1, wide[:, 27:]], -1))
    tinted = (gains * fine, wide)
    unlearned = (fine, np.concatenate([wide[:, :27], -wide[:, 27:]], -1))

    def coded(rows):
        return np.asarray(pattern_code(tuple(map(jnp.asarray, rows)), levels=levels))

    code = coded((fine, wide))
    np.testing.assert_allclose(np.linalg.norm(code, axis=-1), 1.0, rtol=1e-5)
    for other, least in ((relit, 0.999), (tinted, 0.97)):
        likeness = coded(other) @ code.T
        assert (likeness.argmax(-1) == np.arange(50)).all()
        assert np.diag(likeness).min() > least
    assert (coded(unlearned) * code).sum(-1).max() < 0.5
    np.testing.assert_array_equal(coded((0 * fine, 0 * wide)), 0.0)


def test_a_picture_of_another_pyramid_is_refused(memory, scene):
    narrow = _read(jnp.asarray(scene["image"][0]), levels=PYRAMID[:1])
    with pytest.raises(InputError, match=r"widths \(27,\), but the bank holds \(27, 27, 27\)"):
        match_entries(memory.entries, narrow, jnp.ones((1, 2)), height=48, width=64)
