import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small_model import apply, random_like
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.depth_tiny import TinyDepth, TinyDepthConfig

SMALL = TinyDepthConfig(widths=(4, 6, 8, 8), attention_blocks=1, heads=2)


@pytest.fixture(scope="module")
def params():
    """The last layers start at zero; random ones let every path show."""
    return random_like(TinyDepth(SMALL), jnp.zeros((1, 32, 48, 3)), method=TinyDepth.log_depth)


def _images(seed, *shape, low=0.0):
    return np.random.default_rng(seed).uniform(low, 1.0, (*shape, 3)).astype(np.float32)


def test_starts_at_three_metres_everywhere():
    net = TinyDepth(SMALL)
    depth, _ = jax.jit(net.init_with_output)(jax.random.key(1), _images(0, 1, 16, 32))
    assert depth.shape == (1, 16, 32)
    np.testing.assert_allclose(depth, 3.0, rtol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (48, 32)])
def test_depth_is_positive_and_bounded(size, params):
    image = np.float32(50.0) * _images(0, 1, *size, low=-1.0)
    depth = np.asarray(apply(TinyDepth(SMALL), params, image))
    assert depth.shape == (1, *size)
    assert (depth >= SMALL.nearest * 0.999).all()
    assert (depth <= SMALL.farthest * 1.001).all()
    assert np.ptp(np.log(depth)) > 0.01


def test_other_sizes_are_refused():
    with pytest.raises(InputError, match="multiples of 16"):
        TinyDepth(SMALL).init(jax.random.key(0), jnp.zeros((1, 24, 32, 3)))


def test_every_pixel_sees_the_whole_image(params):
    image = np.zeros((1, 64, 128, 3), np.float32)
    changed = image.copy()
    changed[0, :8, :8] = 1.0
    before, after = (
        np.asarray(apply(TinyDepth(SMALL), params, x, method=TinyDepth.log_depth))
        for x in (image, changed)
    )
    assert np.abs(after - before)[0, -4:, -4:].max() > 1e-6


def test_images_of_a_batch_do_not_mix(params):
    net, batch = TinyDepth(SMALL), _images(3, 3, 32, 32)
    together = np.asarray(apply(net, params, batch))
    np.testing.assert_allclose(together[1:2], apply(net, params, batch[1:2]), rtol=1e-4)


def test_config_survives_json():
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(SMALL).items()}
    assert TinyDepthConfig.from_dict(values) == SMALL
    with pytest.raises(InputError, match="depht"):
        TinyDepthConfig.from_dict({"depht": 3})
