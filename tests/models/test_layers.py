"""Small layers against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small_model import apply, init, normal
from worldstereo_jax.models.layers import (
    GroupNorm,
    LayerNorm,
    PatchEmbedding,
    RMSNorm,
    patchify,
    sinusoids,
    unpatchify,
)


def test_patches_come_back_in_place():
    x = normal(0, 2, 2, 4, 6, 3)
    patches = patchify(x, (2, 2, 3))
    assert patches.shape == (2, 1, 2, 2, 36)
    np.testing.assert_array_equal(patches[0, 0, 0, 0, :3], x[0, 0, 0, 0])
    np.testing.assert_array_equal(patches[0, 0, 0, 0, 9:12], x[0, 0, 1, 0])
    np.testing.assert_array_equal(unpatchify(patches, (2, 2, 3)), x)


def test_patch_embedding_is_a_strided_convolution():
    layer, x = PatchEmbedding(5, (1, 2, 2)), normal(0, 1, 2, 4, 6, 3)
    params = init(layer, x)
    convolved = jax.lax.conv_general_dilated(
        x, params["kernel"], (1, 2, 2), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    np.testing.assert_allclose(apply(layer, params, x), convolved, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms_have_unit_statistics(dtype):
    x = (3 + 2 * normal(0, 2, 5, 32)).astype(dtype)
    y = apply(LayerNorm(), {}, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-3)
    rms = RMSNorm()
    z = apply(rms, init(rms, x), x)
    assert z.dtype == dtype
    mean_square = jnp.square(z.astype(jnp.float32)).mean(-1)
    np.testing.assert_allclose(mean_square, 1, atol=2e-2 if dtype == jnp.bfloat16 else 1e-5)


def test_group_norm_runs_over_all_positions_of_a_sample():
    x = 3 + 2 * normal(0, 2, 2, 3, 4, 16)
    layer = GroupNorm(2)
    y = apply(layer, init(layer, x), x)
    for group in (y[..., :8], y[..., 8:]):
        np.testing.assert_allclose(group.mean((1, 2, 3, 4)), 0, atol=1e-5)
        np.testing.assert_allclose(group.std((1, 2, 3, 4)), 1, atol=1e-4)


def test_sinusoids_are_cosines_then_sines():
    out = sinusoids(jnp.array([0.0, 10.0]), 4)
    np.testing.assert_allclose(out[0], [1, 1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(
        out[1], [np.cos(10), np.cos(0.1), np.sin(10), np.sin(0.1)], rtol=1e-5
    )
