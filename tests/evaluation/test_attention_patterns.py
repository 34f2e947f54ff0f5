"""Every pattern's mask against its definition pair by pair, and through the model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import make_token_geometry
from worldstereo_jax.evaluation.attention_patterns import (
    EVERY,
    HARD,
    PAIRS,
    PATTERNS,
    SOFT,
    Sides,
    reading_under,
    sides_of,
)
from worldstereo_jax.memory.masks import best_reference
from worldstereo_jax.sampling.denoise import denoise, model_inputs

REFERENCES, FRAMES, TOKENS = 3, 4, 5


def sides() -> Sides:
    """Tokens at random places; bit i of a target token says whether reference i shows it."""
    rng = np.random.default_rng(0)

    def geometry(views, others):
        total = views * TOKENS
        frame = rng.permutation(np.repeat(np.arange(views), TOKENS))
        bits = rng.integers(0, 2**others, (1, total, 1))
        return make_token_geometry(
            jnp.asarray(rng.uniform(-1, 1, (1, total, 3)), jnp.float32),
            radius=0.6,
            frame=jnp.asarray(frame[None], jnp.int32),
            visibility=jnp.asarray(bits, jnp.uint32),
            valid=jnp.asarray(rng.random((1, total)) < 0.8),
        )

    return Sides(geometry(REFERENCES, FRAMES), geometry(FRAMES, REFERENCES), REFERENCES, FRAMES)


def by_hand(both: Sides) -> np.ndarray:
    """Of every target frame the reference that shows most of its valid tokens."""
    target = both.target
    frame, valid = np.asarray(target.frame[0]), np.asarray(target.valid[0])
    bits = np.asarray(target.visibility[0, :, 0])
    chosen = []
    for f in range(FRAMES):
        counts = [
            sum((bits[t] >> r) & 1 for t in np.flatnonzero((frame == f) & valid))
            for r in range(REFERENCES)
        ]
        chosen.append(int(np.argmax(counts)) if max(counts) > 0 else -1)
    return np.array(chosen)


@pytest.fixture(scope="module")
def masks():
    """Of every pattern, dense."""
    both = sides()

    @jax.jit
    def dense():
        return {name: make(both, 32).dense()[0, 0] for name, make in PATTERNS.items()}

    return jax.device_get(dense())


@pytest.mark.row("S20")
def test_frames_pair_with_the_reference_that_shows_most_of_them(masks):
    both = sides()
    chosen = by_hand(both)
    sizes = {"references": both.references, "frames": both.frames}
    best = jax.jit(functools.partial(best_reference, **sizes))
    np.testing.assert_array_equal(np.asarray(best(both.target))[0], chosen)
    blind = both.target.replace(valid=jnp.zeros(both.target.valid.shape, bool))
    assert (np.asarray(best(blind)) == -1).all()
    mask = masks[PAIRS]
    views = np.asarray(both.reference.frame[0])
    frames = np.asarray(both.target.frame[0])
    n = len(views)
    np.testing.assert_array_equal(mask[:n, :n], views[:, None] == views[None])
    np.testing.assert_array_equal(mask[n:, :n], chosen[frames][:, None] == views[None])
    np.testing.assert_array_equal(mask[:n, n:], mask[n:, :n].T)
    assert mask[n:, n:].all()


@pytest.mark.row("S20")
def test_patterns_differ_only_in_what_is_seen_of_the_other_side(masks):
    n = sides().reference.length
    assert masks[EVERY].all()
    for name, mask in masks.items():
        assert mask[n:, n:].all(), name
    seen = {name: mask[n:, :n] for name, mask in masks.items()}
    # Hard within soft within all; each of them a real restriction here.
    assert not (seen[HARD] & ~seen[SOFT]).any()
    shares = [seen[name].mean() for name in (HARD, SOFT, EVERY)]
    assert 0 < shares[0] < shares[1] < shares[2]


@pytest.fixture(scope="module")
def batch(gathered):
    return jax.tree.map(lambda leaf: leaf[None], gathered[0])


@pytest.mark.slow
@pytest.mark.row("S20")
def test_the_hard_pattern_is_the_rollouts_own_and_others_change_the_output(
    world, params, batch, denoised
):
    x = jnp.asarray(np.random.default_rng(3).normal(size=batch.render_latent.shape), jnp.float32)
    time = jnp.array([700.0])

    @jax.jit
    def masks(conditions):
        kwargs = model_inputs(world.denoiser.config, x, time, conditions).kwargs
        hard = PATTERNS[HARD](sides_of(conditions, kwargs["token_order"]), 128)
        return kwargs["block_mask"].dense(), hard.dense()

    own, hard = masks(batch)
    np.testing.assert_array_equal(own, hard)
    assert 0 < own.mean() < 1

    @jax.jit
    def under_every(conditions):
        reading = reading_under(PATTERNS[EVERY], world.rollout)
        return denoise(world.denoiser, params.denoiser, x, time, conditions, reading=reading)

    assert np.abs(np.asarray(under_every(batch)) - denoised(x, time, batch)).max() > 1e-3
