import numpy as np
import pytest

from worldstereo_jax.data import textures
from worldstereo_jax.errors import InputError


def test_photographs_are_split_once_and_all_are_installed():
    train, held_out = set(textures.TRAIN_PHOTOGRAPHS), set(textures.HELD_OUT_PHOTOGRAPHS)
    assert not train & held_out
    assert held_out == {"coffee", "flower", "camera"}
    assert not any("motorcycle" in name for name in train | held_out)
    for name in train | held_out:
        photograph = textures.load_photograph(name)
        assert photograph.shape[2] == 3
        assert min(photograph.shape[:2]) >= 150
        assert photograph.std() > 5


def test_unknown_photograph_is_named():
    with pytest.raises(InputError, match="motorcycle_left"):
        textures.photograph_path("motorcycle_left")


def test_texture_depends_only_on_the_stream():
    first, again, other = (
        textures.sample_texture(np.random.default_rng(seed), textures.TRAIN_PHOTOGRAPHS)
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_textures_are_neither_black_nor_white():
    rng = np.random.default_rng(0)
    for _ in range(20):
        texture = textures.sample_texture(rng, textures.TRAIN_PHOTOGRAPHS)
        assert 40 < texture.mean() < 220


def test_pyramid_levels_are_means_of_blocks_and_survive_packing():
    texture = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    levels = textures.mip_pyramid(texture)
    assert len(levels) == textures.TEXTURE_LEVELS
    block = texture[8:16, 24:32].astype(float).mean((0, 1))
    np.testing.assert_allclose(levels[3][1, 3], block, rtol=1e-5)

    packed = textures.pack_texture(texture)
    assert packed.shape == (textures.TEXTURE_TEXELS,)
    np.testing.assert_array_equal(packed[:65536].reshape(256, 256) & 255, texture[..., 0])
    np.testing.assert_array_equal(packed[:65536].reshape(256, 256) >> 16, texture[..., 2])
    start = 65536 + 128 * 128
    green = (packed[start : start + 64 * 64].reshape(64, 64) >> 8) & 255
    np.testing.assert_array_equal(green, np.round(levels[2][..., 1]))
