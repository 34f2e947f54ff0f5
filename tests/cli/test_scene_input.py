import numpy as np
import pytest
from PIL import Image

from worldstereo_jax.cli.scene_input import (
    SIZES,
    nearest_size,
    read_working_depth,
    read_working_scene,
)
from worldstereo_jax.data.scene_folders import PanoramaScene, SingleViewScene
from worldstereo_jax.errors import InputError


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (720, 1280, (96, 160)),
        (480, 832, (96, 160)),
        (768, 1024, (112, 144)),
        (500, 500, (128, 128)),
        (1024, 768, (144, 112)),
        (3000, 1000, (160, 96)),
    ],
)
def test_the_working_size_has_the_nearest_proportions(height, width, size):
    assert nearest_size(height, width) == size


def test_every_working_size_is_whole_tokens_and_about_as_many():
    for height, width in SIZES:
        assert height % 16 == width % 16 == 0
        assert 60 <= height * width // 256 <= 64


def test_a_scene_is_read_at_its_working_size(picture, scene, panorama):
    for path in (picture, scene):
        found, own_size = read_working_scene(path)
        assert isinstance(found, SingleViewScene)
        assert own_size == (72, 120)
        assert found.image.shape == (96, 160, 3)
    assert found.intrinsics is not None
    # camera.json names no size: it belongs to the image as it is in its file.
    np.testing.assert_allclose(found.intrinsics[0, :2, 2], [80, 48])
    found, own_size = read_working_scene(panorama)
    assert isinstance(found, PanoramaScene)
    assert own_size == (72, 120)
    assert found.bank.images.shape == (3, 96, 160, 3)


@pytest.mark.parametrize(
    ("size", "said"), [((1, 1), "at least 16"), ((400, 20), "too long for the model")]
)
def test_pictures_that_would_not_be_known_again_are_refused(tmp_path, size, said):
    Image.new("RGB", size).save(tmp_path / "p.png")
    with pytest.raises(InputError, match=said):
        read_working_scene(tmp_path / "p.png")


def test_depth_is_resized_by_nearest_pixels(tmp_path):
    depth = np.ones((4, 6), np.float32)
    depth[:, 3:] = 5
    depth[0, 0] = 0
    np.save(tmp_path / "depth.npy", depth)
    for size in ((8, 12), (2, 3), (7, 5)):
        found = read_working_depth(tmp_path / "depth.npy", (4, 6), size)
        assert found.shape == size
        # No depth in between appears.
        assert set(np.unique(found)) <= {0, 1, 5}
        assert found[-1, -1] == 5
    np.testing.assert_array_equal(
        read_working_depth(tmp_path / "depth.npy", (4, 6), (8, 12)),
        np.repeat(np.repeat(depth, 2, 0), 2, 1),
    )


def test_depth_that_vanishes_in_resizing_is_refused(tmp_path):
    depth = np.zeros((8, 8), np.float32)
    depth[0, 0] = 1
    np.save(tmp_path / "depth.npy", depth)
    with pytest.raises(InputError, match="too few valid depths"):
        read_working_depth(tmp_path / "depth.npy", (8, 8), (2, 2))
