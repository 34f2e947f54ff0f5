import numpy as np
import pytest
from PIL import Image

from worldstereo_jax.data.depth_io import read_depth, resize_depth
from worldstereo_jax.errors import InputError


def _depth() -> np.ndarray:
    return np.linspace(0.5, 4.0, 24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (1, 4, 6)])
def test_npy_in_any_usual_shape(tmp_path, shape):
    np.save(tmp_path / "d.npy", _depth().astype(np.float64).reshape(shape))
    read = read_depth(tmp_path / "d.npy", (4, 6))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, _depth())


def test_npz_under_the_name_depth_or_alone(tmp_path):
    np.savez(tmp_path / "a.npz", depth=_depth(), other=np.zeros(3))
    np.savez(tmp_path / "b.npz", z=_depth())
    for name in ("a.npz", "b.npz"):
        np.testing.assert_array_equal(read_depth(tmp_path / name), _depth())
    np.savez(tmp_path / "c.npz", z=_depth(), other=_depth())
    with pytest.raises(InputError, match="called 'depth'"):
        read_depth(tmp_path / "c.npz")


def test_a_sixteen_bit_image_holds_millimetres(tmp_path):
    millimetres = np.array([[0, 1500], [2, 65535]], np.uint16)
    Image.fromarray(millimetres).save(tmp_path / "d.png")
    np.testing.assert_allclose(read_depth(tmp_path / "d.png"), [[0, 1.5], [0.002, 65.535]])


def test_nan_and_infinity_count_as_unknown(tmp_path):
    depth = _depth()
    depth[0, :3] = [np.nan, np.inf, -np.inf]
    np.save(tmp_path / "d.npy", depth)
    read = read_depth(tmp_path / "d.npy")
    np.testing.assert_array_equal(read[0, :3], 0)
    np.testing.assert_array_equal(read[1:], depth[1:])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((4, 5), np.float32), "4 x 5 .*but the image is 4 x 6"),
        (np.zeros((4, 6), np.float32), "no valid depth"),
        (np.full((4, 6), np.nan), "no valid depth"),
        (_depth() - 1, "negative"),
        (np.ones((2, 4, 6), np.float32), "2 x 4 x 6"),
        (np.float32(3.0), "single number"),
        (np.full((4, 6), "far"), "must hold numbers"),
        (np.ones((4, 6), np.complex64), "must hold numbers"),
        (np.full((4, 6), None), "cannot be read"),
    ],
)
def test_unusable_arrays_end_in_one_sentence(tmp_path, array, words):
    np.save(tmp_path / "d.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=words) as raised:
        read_depth(tmp_path / "d.npy", (4, 6))
    assert str(tmp_path / "d.npy") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damaged_missing_and_eight_bit_files(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 cut")
    np.savez_compressed(tmp_path / "f.npz", depth=_depth())
    packed = bytearray((tmp_path / "f.npz").read_bytes())
    packed[80:100] = bytes(20)
    (tmp_path / "f.npz").write_bytes(packed)
    (tmp_path / "c.exr").write_bytes(b"v/1\x01")
    (tmp_path / "e.npy").write_bytes(b"")
    Image.fromarray(np.ones((4, 6), np.uint8)).save(tmp_path / "d.png")
    for name in ("a.npy", "b.npz", "f.npz", "c.exr", "d.png", "e.npy", "none.npy"):
        with pytest.raises(InputError, match=name):
            read_depth(tmp_path / name)


def test_the_unit_of_an_image_is_millimetres_unless_told(tmp_path):
    Image.fromarray(np.array([[0, 5000]], np.uint16)).save(tmp_path / "d.png")
    np.testing.assert_allclose(read_depth(tmp_path / "d.png"), [[0, 5]])
    np.testing.assert_allclose(read_depth(tmp_path / "d.png", unit=1 / 5000), [[0, 1]])


def test_resized_depth_holds_only_depths_that_were_there():
    depth = _depth()
    np.testing.assert_array_equal(resize_depth(depth, (8, 12))[::2, ::2], depth)
    np.testing.assert_array_equal(resize_depth(depth, (4, 3)), depth[:, 1::2])
    assert np.isin(resize_depth(depth, (3, 5)), depth).all()
