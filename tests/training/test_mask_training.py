"""Clips to copy from, and what the comparison of masks computes from them."""

import functools

import jax
import numpy as np
import pytest

from experiments.mask_clips import HEIGHT, REFERENCES, WIDTH, copy_clip, seen_colours
from experiments.mask_model import (
    BESIDE,
    CONFIG,
    LONGER,
    NO_REFERENCES,
    ON_SURFACE,
    TOKENS,
    VARIANTS,
    Variant,
    attention_on_surface,
)
from experiments.mask_tables import at_time, longer_table, tables
from experiments.mask_training import (
    HELD_CLIPS,
    allowed_keys,
    decibels,
    recoloured,
    square_errors,
)
from worldstereo_jax.evaluation.attention_patterns import EVERY, HARD, PAIRS
from worldstereo_jax.models.worldstereo import init_params

SIDE = 32
"""Of the squares of the wall's pattern, in pixels of the picture."""


@pytest.fixture(scope="module")
def clips():
    """A wall seen squarely by cameras that stand beside each other, a token apart."""
    frames, depth, focal = REFERENCES + 1, 4.0, 100.0
    step = 16 * np.array([0, 1, -1, 2])[:frames]
    wall = np.random.default_rng(0).uniform(-1, 1, (HEIGHT // SIDE, 2 * WIDTH // SIDE, 3))
    wall = wall.repeat(SIDE, 0).repeat(SIDE, 1).astype(np.float32)
    start = WIDTH // 2
    image = np.stack([wall[:, start + s : start + s + WIDTH] for s in step])
    w2c = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    w2c[:, 0, 3] = -step * depth / focal
    k = np.array([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]], np.float32)
    clip = copy_clip(
        image,
        np.full((frames, HEIGHT, WIDTH), depth, np.float32),
        w2c,
        np.tile(k, (frames, 1, 1)),
        np.arange(frames),
    )
    return jax.tree.map(lambda x: x[None], clip)


def test_places_of_references_are_those_of_the_same_surface_in_the_target(clips):
    rows, columns = HEIGHT // 16, WIDTH // 16
    place = np.asarray(clips.place).reshape(rows, columns, 3)
    shifted = np.asarray(clips.reference_place).reshape(REFERENCES, rows, columns, 3)
    np.testing.assert_allclose(shifted[0, :, :-1], place[:, 1:], atol=1e-3)
    np.testing.assert_allclose(shifted[1, :, 1:], place[:, :-1], atol=1e-3)


def test_the_coarse_render_has_one_colour_a_token_and_tells_nothing_finer(clips):
    anchor = np.asarray(clips.anchor[0])
    np.testing.assert_array_equal(anchor, anchor[::2, ::2].repeat(2, 0).repeat(2, 1))
    truth = np.asarray(clips.target[0])
    tokens = truth.reshape(HEIGHT // 16, 2, WIDTH // 16, 2, 3).mean((1, 3))
    # Discs reach over a token's edge, which blurs.
    assert np.corrcoef(anchor[::2, ::2].ravel(), tokens.ravel())[0, 1] > 0.7
    assert float(seen_colours(clips).min()) == 1.0


def test_patterns_leave_as_many_keys_as_they_say(clips):
    keys = {p: allowed_keys(Variant(p), clips) for p in (HARD, PAIRS, EVERY, NO_REFERENCES)}
    assert keys[EVERY] == REFERENCES * TOKENS
    assert keys[PAIRS] == TOKENS
    assert 0 == keys[NO_REFERENCES] < keys[HARD] < 0.2 * keys[EVERY]


def test_under_a_hard_mask_all_attention_to_references_is_on_the_same_surface(clips):
    params = init_params(CONFIG, jax.random.key(0))
    share = jax.jit(functools.partial(attention_on_surface, Variant(HARD, ON_SURFACE)))
    on_references, on_same = share(params, clips)
    assert 0.05 < float(on_references) < 0.95
    assert float(on_same) == pytest.approx(1.0, abs=1e-5)


def test_colours_turn_together_and_errors_with_them(clips):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(1, 3, 3)))[0].astype(np.float32)
    turned = recoloured(clips, turn)
    for name in ("target", "anchor", "references"):
        np.testing.assert_allclose(
            np.square(getattr(turned, name)).sum(-1),
            np.square(getattr(clips, name)).sum(-1),
            atol=1e-4,
        )
    error, count = square_errors(clips.target + 0.1, clips.replace(target=clips.target * 0.5))
    assert float(count[0]) == clips.target[0, ..., 0].size
    assert float(error[0]) > 0
    assert not np.asarray(square_errors(clips.target, clips)[0]).any()


def test_decibels_pool_the_clips_of_a_scene():
    error = np.repeat([0.04, 0.0004], HELD_CLIPS) * 10
    np.testing.assert_allclose(decibels(error, np.full(2 * HELD_CLIPS, 10.0)), [20.0, 40.0])


def result(psnr, seconds):
    steps = (100, 200, 300, 400)
    curve = [{"step": s, "psnr": psnr - (400 - s) / 100, "processor_s": seconds * (s - 100) / 300}
             for s in steps]  # fmt: skip
    return {"psnr": [psnr, psnr + 1.0], "keys": 3.0, "on_references": 0.5, "on_surface": 0.25,
            "curve": curve}  # fmt: skip


def test_the_tables_compare_at_equal_steps_and_at_equal_time():
    results = {variant: result(20.0, 60.0) for variant in VARIANTS}
    results[Variant(HARD, ON_SURFACE)] = result(23.0, 120.0)
    assert at_time(results[Variant(HARD, ON_SURFACE)]["curve"], 60.0) == pytest.approx(21.5)
    main, differences = tables(results, 15.5, HELD_CLIPS)
    row = next(r for r in main.rows if r[0] == Variant(HARD, ON_SURFACE).name)
    assert row[2:6] == ("23.50", "21.00", "21.50", "400")
    found = {(r[0], r[1]): r[2] for r in differences.rows}
    ours = Variant(HARD, ON_SURFACE).name
    assert found[ours, Variant(EVERY, ON_SURFACE).name].startswith("+3.00")
    assert found[ours, Variant(HARD, BESIDE).name].startswith("+3.00")
    assert found[Variant(HARD, BESIDE).name, NO_REFERENCES].startswith("+0.00")
    longer = {variant: result(24.0, 90.0) for variant in LONGER}
    row = longer_table(results, longer).rows[3]
    assert row[:3] == (Variant(EVERY, ON_SURFACE).name, "20.50", "24.50")
    assert row[3].startswith("+0.00")
