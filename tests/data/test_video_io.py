import numpy as np
import pytest
from skimage.data import astronaut
from skimage.transform import resize

from worldstereo_jax.data import video_io
from worldstereo_jax.errors import InputError


def _clip(frames: int = 5) -> np.ndarray:
    image = np.asarray(resize(astronaut(), (96, 160)), np.float32) * 2 - 1
    return np.stack([np.roll(image, 3 * i, axis=1) for i in range(frames)])


def test_frames_come_back_in_order_and_nearly_unchanged(tmp_path):
    clip = _clip()
    video_io.write_video(tmp_path / "v.mp4", clip)
    read = video_io.read_video(tmp_path / "v.mp4")
    assert read.shape == clip.shape
    assert read.dtype == np.float32
    luma = np.array([0.299, 0.587, 0.114])
    error = np.mean(((read - clip) @ luma / 2) ** 2, axis=(1, 2))
    assert np.all(10 * np.log10(1 / error) > 40)
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_equal_frames_give_equal_bytes_and_others_do_not(tmp_path):
    clip = _clip()
    for name, frames in (("a", clip), ("b", clip), ("c", clip[::-1])):
        video_io.write_video(tmp_path / f"{name}.mp4", frames)
    first, second, third = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert first == second
    assert first != third


def test_what_else_is_in_memory_does_not_change_the_bytes(tmp_path):
    rng = np.random.default_rng(0)
    clip, found = _clip(9), set()
    for _ in range(25):
        litter = [np.full(size, 1e9) for size in rng.integers(10, 5000, 4000)]
        del litter[:: rng.integers(1, 4)]
        video_io.write_video(tmp_path / "v.mp4", clip)
        found.add((tmp_path / "v.mp4").read_bytes())
    assert len(found) == 1


def test_masks_come_back_exactly(tmp_path):
    rng = np.random.default_rng(0)
    masks = np.kron(rng.random((4, 6, 10)) > 0.5, np.ones((1, 8, 8)))[..., None].astype(np.float32)
    video_io.write_mask_video(tmp_path / "m.mp4", masks, progress="masks")
    np.testing.assert_array_equal(video_io.read_mask_video(tmp_path / "m.mp4"), masks)


def test_reads_the_official_renders(shared_dir):
    folder = shared_dir / "data/panorama/scene0/view0/traj0"
    masks = video_io.read_mask_video(folder / "render_mask.mp4")
    assert masks.shape == (21, 480, 832, 1)
    assert set(np.unique(masks)) == {0.0, 1.0}
    assert masks[0].sum() == 0


def test_odd_sizes_and_empty_clips_leave_nothing_behind(tmp_path):
    for shape, words in (((2, 5, 6, 3), "even"), ((0, 4, 6, 3), "at least one frame")):
        with pytest.raises(InputError, match=words):
            video_io.write_video(tmp_path / "v.mp4", np.zeros(shape, np.float32))
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_video_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    video_io.write_video(tmp_path / "whole.mp4", _clip())
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:200])
    for name in ("text.mp4", "empty.mp4", "cut.mp4", "none.mp4"):
        with pytest.raises(InputError, match=name):
            video_io.read_video(tmp_path / name)


def test_the_frames_nearest_to_some_times_are_found(tmp_path):
    """At 16 a second frame i is shown at i / 16."""
    grey = np.linspace(-0.9, 0.9, 12, dtype=np.float32)
    clip = np.broadcast_to(grey[:, None, None, None], (12, 16, 16, 3))
    video_io.write_video(tmp_path / "v.mp4", clip)
    found = video_io.read_video_times(tmp_path / "v.mp4", [10.4 / 16, 0.0, 2.6 / 16, 0.0])
    means = np.stack(found).mean((1, 2, 3)) / 127.5 - 1
    np.testing.assert_allclose(means, grey[[10, 0, 3, 0]], atol=0.03)
    assert len(video_io.read_video_times(tmp_path / "v.mp4", [11.9 / 16])) == 1
    with pytest.raises(InputError, match=r"v\.mp4 shows no frame at 0\.8 s"):
        video_io.read_video_times(tmp_path / "v.mp4", [0.0, 0.8])
