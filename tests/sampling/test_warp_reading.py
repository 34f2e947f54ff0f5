"""Pictures of warps become candidates on the latent's grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.sampling.warp_reading import (
    UNSEEN_LOG_WEIGHT,
    CandidatePictures,
    candidate_features,
)


@pytest.mark.row("S18")
@pytest.mark.parametrize("stride", [1, 4])
def test_cover_and_weight_are_means_over_what_a_latent_pixel_stands_for(stride):
    """Its 8 x 8 pixels, and of a causal clip its frames: the first alone, then four by four."""
    frames = 1 + 2 * stride
    random = np.random.default_rng(0)
    cover = (random.random((frames, 16, 24, 2)) < 0.5).astype(np.float32)
    cover[:, :8, :8, 1], cover[:, 8:, 8:16] = 1, 0
    weight = cover * random.random(cover.shape, np.float32)
    pictures = CandidatePictures(jnp.zeros((*cover.shape, 3)), *map(jnp.asarray, (weight, cover)))
    latents = jax.random.normal(jax.random.key(0), (2, 3, 2, 3, 16))
    features, log_weight = jax.jit(candidate_features)(latents, pictures)
    np.testing.assert_array_equal(features[..., :16], jnp.moveaxis(latents, 0, -2))

    def mean(value, frame, row, column, k):
        first = 0 if frame == 0 else 1 + stride * (frame - 1)
        last = 1 if frame == 0 else first + stride
        box = value[first:last, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8, k]
        return box.mean(dtype=np.float64)

    for place in np.ndindex(3, 2, 3, 2):
        share = mean(cover, *place)
        np.testing.assert_allclose(features[*place, 16], share, atol=1e-6)
        expected = max(np.log(max(mean(weight, *place), 1e-9)), UNSEEN_LOG_WEIGHT)
        # A single view that shows less than half of it is none; the fusion always is one.
        if place[-1] == 1 and not share > 0.5:
            expected = -np.inf
        np.testing.assert_allclose(log_weight[place], expected, rtol=1e-4)
