import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.lowered import coarse_products
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.memory import retrieval
from worldstereo_jax.memory.retrieval import axis_angle_degrees, box_iou

camera_features = jax.jit(retrieval.camera_features)
diversity_features = jax.jit(retrieval.diversity_features)
farthest_points = jax.jit(retrieval.farthest_points, static_argnums=2)
frustum_box = jax.jit(retrieval.frustum_box, static_argnames=("width", "height", "near", "far"))
overlap_score = jax.jit(retrieval.overlap_score, static_argnames=("width", "height"))
quality_score = jax.jit(retrieval.quality_score)
select_references = jax.jit(retrieval.select_references, static_argnames="count")

pytestmark = pytest.mark.row("S26")


@pytest.fixture(scope="module")
def golden(goldens_dir):
    return dict(np.load(goldens_dir / "retrieval.npz", allow_pickle=False))


def golden_size(golden):
    return {"width": int(golden["image_wh"][0]), "height": int(golden["image_wh"][1])}


def target_intrinsics(golden):
    return np.repeat(golden["ref_K"][:1], len(golden["target_w2c"]), axis=0)


def test_overlap_and_angle_equal_official(golden):
    size = golden_size(golden)
    near, far = (float(x) for x in golden["near_far"])
    targets = frustum_box(
        golden["target_w2c"], target_intrinsics(golden), near=near, far=far, **size
    )
    bank = frustum_box(golden["ref_w2c"], golden["ref_K"], near=near, far=far, **size)
    np.testing.assert_allclose(box_iou(targets, bank), golden["overlap"], atol=5e-6)
    angle = axis_angle_degrees(golden["target_w2c"], golden["ref_w2c"])
    np.testing.assert_allclose(angle, golden["angle_deg"], atol=1e-3)


def test_best_view_equals_official(golden):
    score = overlap_score(
        golden["target_w2c"],
        target_intrinsics(golden),
        golden["ref_w2c"],
        golden["ref_K"],
        **golden_size(golden),
    )
    best = np.argmax(score, axis=1)
    np.testing.assert_array_equal(best, golden["best_index"])
    np.testing.assert_allclose(np.max(score, axis=1), golden["best_score"], atol=5e-6)
    # Views seen from beyond 90 degrees are in the golden, and their factor matters.
    behind = golden["angle_deg"] > 90
    factor = np.exp(5 * (90 - golden["angle_deg"]) / 180)
    np.testing.assert_allclose(
        np.asarray(score)[behind], (golden["overlap"] * factor)[behind], atol=5e-6
    )
    assert behind.any()


def test_farthest_points_equal_official(golden):
    features = camera_features(golden["ref_w2c"])
    np.testing.assert_allclose(features, golden["camera_features"], atol=1e-5)
    found = farthest_points(
        diversity_features(features, golden["image_features"]), jnp.asarray(golden["quality"]), 6
    )
    np.testing.assert_array_equal(found, golden["fps_indices"])


def test_quality_equals_official(golden):
    images = golden["quality_images"].astype(np.float32) / 127.5 - 1
    found = np.array([quality_score(image) for image in images])
    np.testing.assert_allclose(found, golden["quality_scores"], rtol=1e-6)
    swapped = np.array([quality_score(image[..., ::-1]) for image in images])
    assert np.abs(swapped - golden["quality_scores"]).max() > 1e-5


def test_keyframes_of_a_clip_equal_official(golden):
    for total in (81, 21):
        expected = golden[f"align_indices_{total}_8"]
        np.testing.assert_array_equal(keyframe_indices(total, 8), expected)


def random_bank(seed, frames=6, views=5):
    rng = np.random.default_rng(seed)
    return {
        "score": rng.random((frames, views)).astype(np.float32),
        "valid": np.ones(views, bool),
        "camera": rng.normal(size=(views, 7)).astype(np.float32),
        "image": rng.normal(size=(views, 4)).astype(np.float32),
        "quality": rng.random(views).astype(np.float32),
    }


def brute_force(bank, count):
    """The same choice with lists and dictionaries."""
    score = np.where(bank["valid"][None], bank["score"], -np.inf)
    choice = list(score.argmax(axis=1))
    if len(set(choice)) > count:
        features = diversity_features(bank["camera"][choice], bank["image"][choice])
        picks = farthest_points(features, jnp.asarray(bank["quality"][choice]), count)
        kept = sorted({choice[i] for i in np.asarray(picks)})
        choice = [kept[int(np.argmax(row[kept]))] for row in score]
    first = {}
    for frame, view in enumerate(choice):
        first.setdefault(view, frame)
    return choice, first


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_selection_equals_brute_force(seed, count):
    bank = random_bank(seed, frames=12, views=7)
    bank["valid"][seed % 7] = False
    found = select_references(**bank, count=count)
    choice, first = brute_force(bank, count)
    np.testing.assert_array_equal(found.frame_view, choice)
    used = int(found.valid.sum())
    assert used == len(first) <= count
    assert found.view.shape == (count,)
    assert (
        dict(zip(found.view.tolist()[:used], found.position.tolist()[:used], strict=True)) == first
    )
    assert list(first.values()) == found.position[:used].tolist()
    assert not found.valid[used:].any()
    assert seed % 7 not in found.view[:used].tolist()


def test_bonus_acts_in_the_first_pass_only():
    bank = random_bank(3, frames=4, views=4)
    bank["score"] = np.eye(4, dtype=np.float32) * 0.5
    bonus = np.zeros((4, 4), np.float32)
    bonus[:, 2] = 1.0
    all_frames = select_references(**bank, count=4, bonus=bonus)
    assert all_frames.frame_view.tolist() == [2, 2, 2, 2]
    bonus[:, 2] = [1, 0, 0, 0]
    again = select_references(**bank, count=2, bonus=bonus)
    without = np.argmax(np.where(np.isin(range(4), again.view)[None], bank["score"], -1), axis=1)
    assert again.frame_view.tolist() == without.tolist()


def test_empty_bank_gives_no_reference():
    bank = random_bank(0)
    bank["valid"][:] = False
    found = select_references(**bank, count=3)
    assert not found.valid.any()


def test_a_view_of_the_same_place_wins():
    pose = np.eye(4, dtype=np.float32)
    turned = np.diag([-1.0, 1.0, -1.0, 1.0]).astype(np.float32)
    aside = pose.copy()
    aside[0, 3] = 4.0
    intrinsics = np.array([[50, 0, 32], [0, 50, 24], [0, 0, 1]], np.float32)
    score = overlap_score(
        pose[None],
        intrinsics[None],
        np.stack([turned, aside, pose]),
        np.repeat(intrinsics[None], 3, axis=0),
        width=64,
        height=48,
    )
    np.testing.assert_allclose(score[0, 2], 1, rtol=1e-5)
    assert score[0, 0] < score[0, 1] < score[0, 2]


def test_no_device_rounds_an_overlap():
    def cameras(count):
        return [jax.ShapeDtypeStruct((count, side, side), jnp.float32) for side in (4, 3)]

    def score(*cameras):
        return retrieval.overlap_score(*cameras, width=8, height=6)

    assert not coarse_products(score, *cameras(5), *cameras(3))
    assert not coarse_products(retrieval.camera_features, cameras(3)[0])
    image = jax.ShapeDtypeStruct((6, 8, 3), jnp.float32)
    assert not coarse_products(retrieval.quality_score, image)
