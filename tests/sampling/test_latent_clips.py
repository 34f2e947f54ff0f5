import jax.numpy as jnp
import numpy as np

from worldstereo_jax.sampling.latent_clips import first_frame_condition, tile_stride


def test_the_mask_marks_the_first_frame_alone():
    latent = jnp.arange(3 * 2 * 2 * 16, dtype=jnp.float32).reshape(3, 2, 2, 16)
    found = first_frame_condition(latent)
    assert found.shape == (3, 2, 2, 20)
    np.testing.assert_array_equal(found[..., 4:], latent)
    np.testing.assert_array_equal(found[..., :4].sum((1, 2, 3)), [16, 0, 0])


def test_tiles_overlap_by_a_quarter():
    assert [tile_stride(tile) for tile in (32, 4, 1)] == [24, 3, 1]
