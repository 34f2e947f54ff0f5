"""RealEstate10K, TUM and KITTI: lines as the data sets write them, and faulty ones."""

import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats import UNIT_SIZE, read_cameras

TUM = """# ground truth trajectory
# timestamp tx ty tz qx qy qz qw

1305031098.6659 1.3563 0.6305 1.6380 0 0 0.70710678 0.70710678
1305031098.6758 2 0 0 0 0 0 -1
"""
REALESTATE = """https://www.youtube.com/watch?v=x
52553000 0.5 0.9 0.5 0.5 0 0 1 0 0 0.1 0 1 0 0.2 0 0 1 0.3
52586000 0.5 0.9 0.5 0.5 0.0 0.0 0 1 0 0 -1 0 0 0 0 0 1 1
"""
KITTI = "1 0 0 4 0 1 0 5 0 0 1 6\n0 1 0 0 -1 0 0 0 0 0 1 1\n"


def read(tmp_path, content, **options):
    (tmp_path / "file.txt").write_text(content)
    return read_cameras(tmp_path / "file.txt", **options)


def test_tum_gives_camera_to_world_in_metres(tmp_path):
    found = read(tmp_path, TUM)
    c2w = np.linalg.inv(found.w2c)
    np.testing.assert_allclose(c2w[0, :3, 3], [1.3563, 0.6305, 1.6380], atol=1e-12)
    # A quarter turn about z: the camera's x axis points along the world's y.
    np.testing.assert_allclose(c2w[0, :3, 0], [0, 1, 0], atol=1e-7)
    np.testing.assert_allclose(c2w[1], [[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert found.names[0] == "1305031098.6659"
    np.testing.assert_allclose(found.times, [1305031098.6659, 1305031098.6758], rtol=0, atol=1e-6)
    assert found.metric
    assert found.intrinsics is None


def test_realestate_gives_world_to_camera_and_shares_of_the_image(tmp_path):
    shares = read(tmp_path, REALESTATE)
    assert shares.size == UNIT_SIZE
    found = read(tmp_path, REALESTATE, size=(360, 640))
    np.testing.assert_allclose(found.w2c[0, :3, 3], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(found.w2c[1, 0], [0, 1, 0, 0])
    np.testing.assert_allclose(found.intrinsics[0], [[320, 0, 320], [0, 324, 180], [0, 0, 1]])
    assert found.names == ("52553000", "52586000")
    np.testing.assert_allclose(found.times, [52.553, 52.586])
    # Derived files leave the address out.
    bare = read(tmp_path, REALESTATE.partition("\n")[2])
    np.testing.assert_array_equal(bare.w2c, shares.w2c)


def test_kitti_gives_camera_to_world_in_metres(tmp_path):
    found = read(tmp_path, KITTI)
    np.testing.assert_allclose(np.linalg.inv(found.w2c)[0, :3, 3], [4, 5, 6])
    np.testing.assert_allclose(np.linalg.inv(found.w2c)[1, 0], [0, 1, 0, 0], atol=1e-12)
    assert found.metric
    assert found.names == ("000000", "000001")


@pytest.mark.parametrize(
    ("content", "spoil", "by", "said"),
    [
        (TUM, "2 0 0 0 0 0 -1", "2 0 0 0 0 0", "line 5 has 7 columns instead of 8"),
        (TUM, "2 0 0", "2 nan 0", "line 5: 'nan' is no finite number"),
        (TUM, "2 0 0", "2 1e999 0", "line 5: '1e999' is no finite number"),
        (TUM, "2 0 0", "2 here 0", "line 5: 'here' is no finite number"),
        (TUM, "0 0 0 -1", "0 0 0 0", "line 5: the quaternion has length 0"),
        (REALESTATE, "-1 0 0 0 0 0 1 1", "1 0 0 0 0 0 1 1", "line 3: .* is no rotation"),
        (REALESTATE, "0.0 0.0", "0.0 0.1", "line 3: its lens has distortion"),
        (REALESTATE, "52586000 0.5", "52586000 -0.5", "line 3: both focal lengths"),
        (REALESTATE, "0 0 1 1\n", "0 0 1\n", "line 3 has 18 columns instead of 19"),
        (KITTI, "-1 0 0 0", "-1 0 0.1 0", "line 2: .* is no rotation"),
    ],
)
def test_each_fault_is_one_sentence_naming_file_and_line(tmp_path, content, spoil, by, said):
    assert spoil in content
    with pytest.raises(InputError, match=said) as raised:
        read(tmp_path, content.replace(spoil, by))
    assert str(tmp_path / "file.txt") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["tum", "kitti", "realestate10k"])
def test_a_file_without_cameras_is_none(tmp_path, name):
    with pytest.raises(InputError, match="holds no cameras"):
        read(tmp_path, "# nothing\n", name=name)
