import io

import numpy as np
import pytest
from PIL import Image

from worldstereo_jax.data import images
from worldstereo_jax.errors import InputError


def _picture(height=12, width=20) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_png_round_trip_is_exact_to_eight_bits(tmp_path):
    picture = _picture()
    images.write_uint8_image(tmp_path / "a.png", picture)
    read = images.read_image(tmp_path / "a.png")
    assert read.dtype == np.float32
    assert read.min() >= -1
    assert read.max() <= 1
    np.testing.assert_array_equal(images.to_uint8(read), picture)
    images.write_image(tmp_path / "b.png", read)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "BMP", "GIF"])
def test_the_bytes_and_not_the_suffix_tell_the_format(tmp_path, form):
    flat = np.full((8, 10, 3), (200, 40, 90), np.uint8)
    Image.fromarray(flat).save(tmp_path / "image.png", format=form)
    read = images.to_uint8(images.read_image(tmp_path / "image.png"))
    assert read.shape == (8, 10, 3)
    assert np.abs(read.astype(int) - flat).max() < 12


def test_the_official_scenes_are_jpeg_and_webp_called_png(shared_dir):
    for scene, shape in (
        ("photorealistic-indoor-dining_spaces-030", (720, 1080, 3)),
        ("stylized-outdoor-aquatic_landscape-069", (1024, 1024, 3)),
    ):
        assert (
            images.read_image(shared_dir / "data/single_view" / scene / "image.png").shape == shape
        )


def test_grey_alpha_and_sixteen_bits_become_rgb(tmp_path):
    for array in (
        np.full((4, 6), 51, np.uint8),
        np.full((4, 6), 51 * 257, np.uint16),
        np.full((4, 6, 4), 51, np.uint8),
    ):
        Image.fromarray(array).save(tmp_path / "a.png")
        read = images.read_image(tmp_path / "a.png")
        assert read.shape == (4, 6, 3)
        np.testing.assert_allclose(read, 51 / 127.5 - 1, atol=1e-5)


def test_floating_point_grey_is_refused_instead_of_turning_black(tmp_path):
    Image.fromarray(np.full((4, 6), 0.5, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"a\.tiff holds floating-point grey"):
        images.read_image(tmp_path / "a.tiff")


def test_a_large_photograph_is_read_without_a_warning(tmp_path, monkeypatch, recwarn):
    Image.fromarray(_picture(8, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert images.read_image(tmp_path / "a.png").shape == (8, 20, 3)
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(InputError, match=r"a\.png cannot be read as an image"):
        images.read_image(tmp_path / "a.png")


def test_a_turned_photograph_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter
    Image.fromarray(_picture(8, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert images.read_image(tmp_path / "a.jpg").shape == (20, 8, 3)


def _cut_short(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("make", [lambda d: b"no image at all", lambda d: b"", _cut_short])
def test_a_file_that_is_no_image_ends_in_one_sentence(tmp_path, make):
    buffer = io.BytesIO()
    Image.fromarray(_picture(64, 64)).save(buffer, format="PNG")
    (tmp_path / "image.png").write_bytes(make(buffer.getvalue()))
    with pytest.raises(InputError) as raised:
        images.read_image(tmp_path / "image.png")
    assert str(tmp_path / "image.png") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            images.read_image(path)


def test_resizing_keeps_the_whole_picture_and_its_mean():
    y, x = np.mgrid[0:64, 0:96] / np.array([64, 96]).reshape(2, 1, 1)
    smooth = np.stack([np.sin(3 * x), np.cos(2 * y), x * y], -1).astype(np.float32)
    small = images.resize_image(smooth, (16, 24))
    assert small.shape == (16, 24, 3)
    np.testing.assert_allclose(small.mean((0, 1)), smooth.mean((0, 1)), atol=5e-3)
    blocks = smooth.reshape(16, 4, 24, 4, 3).mean((1, 3))
    np.testing.assert_allclose(small[2:-2, 2:-2], blocks[2:-2, 2:-2], atol=5e-3)
    np.testing.assert_array_equal(images.resize_image(smooth, (64, 96)), smooth)


def test_resizing_stays_in_range():
    step = np.where(np.arange(40)[None, :, None] < 20, -1, 1) * np.ones((30, 1, 3))
    resized = images.resize_image(step.astype(np.float32), (60, 90))
    assert resized.min() >= -1
    assert resized.max() <= 1
