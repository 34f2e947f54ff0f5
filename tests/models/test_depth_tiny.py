import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.models.depth_tiny import TinyDepth, TinyDepthConfig

SMALL = TinyDepthConfig(widths=(4, 6, 8, 8), attention_blocks=1, heads=2)


def _params(config=SMALL, seed=0):
    net = TinyDepth(config)
    params = net.init(jax.random.key(seed), jnp.zeros((1, 32, 48, 3)), method=TinyDepth.log_depth)
    leaves, tree = jax.tree.flatten(params["params"])
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    # The last layers start at zero; random ones let every path show.
    return tree.unflatten(
        [
            leaf + 0.1 * jax.random.normal(k, leaf.shape)
            for leaf, k in zip(leaves, keys, strict=True)
        ]
    )


def _apply(net, params, x, method=None) -> typing.Any:
    return net.apply({"params": params}, x, method=method)


def test_starts_at_three_metres_everywhere():
    net = TinyDepth(SMALL)
    image = jax.random.uniform(jax.random.key(0), (1, 16, 32, 3))
    depth, _ = net.init_with_output(jax.random.key(1), image)
    assert depth.shape == (1, 16, 32)
    np.testing.assert_allclose(depth, 3.0, rtol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (48, 32)])
def test_depth_is_positive_and_bounded(size):
    image = jax.random.uniform(jax.random.key(0), (1, *size, 3), minval=-1, maxval=1)
    depth = _apply(TinyDepth(SMALL), _params(), 50.0 * image)
    assert depth.shape == (1, *size)
    assert (depth >= SMALL.nearest * 0.999).all()
    assert (depth <= SMALL.farthest * 1.001).all()
    assert np.ptp(np.log(depth)) > 0.01


def test_other_sizes_are_refused():
    with pytest.raises(InputError, match="multiples of 16"):
        TinyDepth(SMALL).init(jax.random.key(0), jnp.zeros((1, 24, 32, 3)))


def test_every_pixel_sees_the_whole_image():
    net, params = TinyDepth(SMALL), _params()
    image = jnp.zeros((1, 64, 128, 3))
    changed = image.at[0, :8, :8].set(1.0)
    log_depth = jax.jit(lambda x: _apply(net, params, x, TinyDepth.log_depth))
    difference = jnp.abs(log_depth(changed) - log_depth(image))
    assert difference[0, -4:, -4:].max() > 1e-6


def test_images_of_a_batch_do_not_mix():
    net, params = TinyDepth(SMALL), _params()
    batch = jax.random.uniform(jax.random.key(3), (3, 32, 32, 3))
    together = _apply(net, params, batch)
    np.testing.assert_allclose(together[1:2], _apply(net, params, batch[1:2]), rtol=1e-4)


def test_config_survives_json():
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(SMALL).items()}
    assert TinyDepthConfig.from_dict(values) == SMALL
    with pytest.raises(InputError, match="depht"):
        TinyDepthConfig.from_dict({"depht": 3})
