import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.models.detail_mixer import DetailMixer, DetailMixerConfig

SMALL = DetailMixer(DetailMixerConfig(widths=(4, 6, 8), blocks=(1, 1, 1)))


def _layers(frames: int = 2, height: int = 16, width: int = 24) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 5)
    pictures = [jax.random.uniform(k, (frames, height, width, 3), minval=-1.0) for k in keys[:3]]
    hole, weight = (jax.random.uniform(k, (frames, height, width)) for k in keys[3:])
    return (*pictures, (hole > 0.7).astype(jnp.float32), weight)


def _moved(params) -> dict:
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


@pytest.mark.row("S21")
def test_untrained_it_mixes_by_the_given_weight():
    video, warp, _, _, weight = layers = _layers()
    mixed, _ = SMALL.init_with_output(jax.random.key(0), *layers)
    expected = video + weight.clip(0.02, 0.98)[..., None] * (warp - video)
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


def test_every_input_counts_once_trained():
    layers = _layers()
    params = _moved(SMALL.init(jax.random.key(0), *layers)["params"])
    base = SMALL.apply({"params": params}, *layers)
    for index in range(len(layers)):
        changed = list(layers)
        changed[index] = changed[index].at[0, 8, 8].add(0.5)
        moved = SMALL.apply({"params": params}, *changed)
        assert float(jnp.abs(moved - base)[0].max()) > 1e-4
        np.testing.assert_array_equal(moved[1], base[1])


def test_frames_are_mixed_each_alone():
    layers = _layers()
    params = _moved(SMALL.init(jax.random.key(0), *layers)["params"])
    whole = SMALL.apply({"params": params}, *layers)
    single = SMALL.apply({"params": params}, *(layer[1:] for layer in layers))
    np.testing.assert_allclose(single[0], whole[1], atol=1e-5)


def test_a_size_that_is_no_multiple_of_8_is_refused():
    with pytest.raises(InputError, match="multiples of 8"):
        SMALL.init(jax.random.key(0), *_layers(height=20))
