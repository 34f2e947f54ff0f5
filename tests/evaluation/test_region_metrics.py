"""Region metrics by themselves, and what the memory keeps of each region of a made scene."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.data.region_scenes import REGIONS, make_region_scene, render_regions
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.region_metrics import region_scores
from worldstereo_jax.geometry.cameras import project
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_features import pyramid_widths
from worldstereo_jax.memory.entry_frame import make_entry_frame
from worldstereo_jax.memory.entry_update import build_entries
from worldstereo_jax.memory.entry_warp import warp_entries

HEIGHT, WIDTH = 64, 104
K = np.array([[61.0, 0, WIDTH / 2], [0, 61.0, HEIGHT / 2], [0, 0, 1]], np.float32)
EYES = np.array([[-0.45, 0.1], [-0.15, -0.1], [0.15, 0.1], [0.45, -0.1], [0.02, 0.03]])


def test_each_region_is_judged_by_itself():
    random = np.random.default_rng(0)
    truth = random.uniform(-0.5, 0.5, (40, 60, 3)).astype(np.float32)
    left = np.zeros((40, 60), bool)
    left[:, :30] = True
    off = truth + 0.2 * ~left[..., None]
    masks = {"left": left, "right": ~left, "none": np.zeros_like(left)}
    scores = region_scores(off.astype(np.float32), truth, masks)
    assert scores["right"].psnr == pytest.approx(10 * np.log10(4 / 0.04), abs=0.01)
    assert scores["left"].psnr > 60
    assert scores["left"].pixels == 1200
    assert scores["none"].pixels == 0
    assert np.isnan(scores["none"].psnr)
    blurred = (truth + np.roll(truth, 1, 0) + np.roll(truth, 1, 1)) / 3
    assert region_scores(blurred, truth, masks)["left"].detail < 0.6
    known = ~left
    assert region_scores(truth, truth, masks, known=known)["left"].pixels == 0
    with pytest.raises(InputError, match="no truth"):
        region_scores(truth[:20], truth, masks)
    with pytest.raises(InputError, match="'left'"):
        region_scores(truth, truth, {"left": left[:20]})


@pytest.fixture(scope="module")
def kept():
    """Four stored views, a fifth as drawn from the entries, and the bank."""
    w2c = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1))
    w2c[:, :2, 3] = -EYES
    intrinsics = np.tile(K, (5, 1, 1))
    frames = render_regions(make_region_scene(1), w2c, intrinsics, height=HEIGHT, width=WIDTH)

    @jax.jit
    def fuse(image, depth, w2c, intrinsics):
        stacked = jax.vmap(lambda i, d, w, k, v: make_entry_frame(i, d, w, k, view=v))(
            image, depth, w2c, intrinsics, jnp.arange(4)
        )
        return build_entries(init_entries(EntryConfig(12_000, pyramid_widths())), stacked)

    given = (jnp.asarray(x[:4]) for x in (frames.image, frames.depth, w2c, intrinsics))
    bank = fuse(*given)
    drawn = warp_entries(bank, w2c[4], K, height=HEIGHT, width=WIDTH)
    return frames, bank, drawn, w2c


@pytest.mark.row("S21")
@pytest.mark.row("S22")
@pytest.mark.row("S23")
@pytest.mark.row("S24")
def test_with_the_memory_every_region_is_closer_than_in_the_nearest_frame(kept):
    frames, _, drawn, _ = kept
    known = np.asarray(drawn.mask) < 0.5
    assert known.mean() > 0.85
    masks = frames.masks(4)
    scores = region_scores(np.asarray(drawn.features), frames.image[4], masks, known=known)
    nearest = region_scores(frames.image[2], frames.image[4], masks, known=known)
    for name, gain in {
        "weave": 3,
        "relief": 6,
        "card": 6,
        "silhouette": 3,
        "shadow edge": 3,
        "wall": 6,
    }.items():
        assert scores[name].psnr > nearest[name].psnr + gain, name
        assert scores[name].ssim > nearest[name].ssim, name
    for name in ("relief", "card", "silhouette"):
        assert 0.3 < scores[name].detail < 1.2


@pytest.mark.row("S24")
def test_what_changes_with_the_view_is_trusted_less(kept):
    frames, bank, _, w2c = kept
    pixel, _ = project(bank.position, jnp.asarray(w2c[1]), jnp.asarray(K))
    x, y = np.floor(np.asarray(pixel)).astype(int).T
    held = np.asarray(bank.valid & (bank.observations > 2))
    held = held & (x >= 0) & (y >= 0) & (x < WIDTH) & (y < HEIGHT)
    region = frames.region[1][np.clip(y, 0, HEIGHT - 1), np.clip(x, 0, WIDTH - 1)]
    confidence = np.asarray(bank.confidence)
    mean = {n: confidence[held & (region == i)].mean() for i, n in enumerate(REGIONS)}
    assert mean["mirror"] < 0.8 * min(mean["wall"], mean["relief"], mean["weave"])
    assert mean["mirror"] < mean["gloss"] < mean["wall"]


@pytest.mark.row("S23")
def test_entries_have_the_bumps_and_slopes_of_the_relief(kept):
    frames, bank, _, w2c = kept
    depth = frames.depth[1].astype(np.float64)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    ray = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(K).T
    point = ray * depth[..., None] - w2c[1, :3, 3]
    down, along = np.gradient(point, axis=(0, 1))
    normal = np.cross(down, along)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    pixel, _ = project(bank.position, jnp.asarray(w2c[1]), jnp.asarray(K))
    x, y = np.floor(np.asarray(pixel)).astype(int).T
    held = np.asarray(bank.valid & (bank.observations > 2) & (bank.edge < 0.5))
    held = held & (x >= 2) & (y >= 2) & (x < WIDTH - 2) & (y < HEIGHT - 2)
    at = np.clip(y, 0, HEIGHT - 1), np.clip(x, 0, WIDTH - 1)
    held &= frames.region[1][at] == REGIONS.index("relief")
    assert held.sum() > 100
    z, true = np.asarray(bank.position)[held, 2], depth[at][held]
    assert np.corrcoef(z, true)[0, 1] > 0.9
    assert 0.8 < z.std() / true.std() < 1.2
    slope, truly = np.asarray(bank.normal)[held, :2], normal[at][held, :2]
    # Few pixels make a bump, so slopes are coarse.
    assert np.corrcoef(slope.ravel(), truly.ravel())[0, 1] > 0.35
    assert 0.4 < slope.std() / truly.std() < 2.0
