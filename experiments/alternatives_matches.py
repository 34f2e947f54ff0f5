"""What COLMAP finds in the frames of `alternatives` (row S27)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.alternatives_scenes import REPROJECTION, TRUTH
from worldstereo_jax.evaluation.alternatives import GLOBAL_ONLY, NO_MEMORY
from worldstereo_jax.evaluation.attention_patterns import HARD
from worldstereo_jax.evaluation.feature_matches import UPSCALE, match_frames, true_matches
from worldstereo_jax.evaluation.paired import paired_difference
from worldstereo_jax.evaluation.report import Table, format_difference

MATCHED = (HARD, GLOBAL_ONLY, NO_MEMORY, REPROJECTION, TRUTH)
TOLERANCE = 2.0  # pixels


class Found(NamedTuple):
    """Of one scene: features per frame, inliers, those that true geometry confirms, tracks."""

    features: float
    inliers: int
    true: int
    tracks: int
    length: float
    long: int


def match_scene(
    scene: Mapping[str, jax.Array], videos: Mapping[tuple[str, str], np.ndarray]
) -> dict[str, Found]:
    """All frames of both clips, as they were made in every way; the given frame counts once."""
    depth, w2c = (
        np.concatenate([scene[name], scene[f"revisit_{name}"][1:]]) for name in ("depth", "w2c")
    )
    k = np.asarray(scene["intrinsics"][0])
    found = {}
    for name in MATCHED:
        frames = np.concatenate([videos["first", name], videos["revisit", name][1:]])
        matches = match_frames(frames, k)
        confirmed = true_matches(matches, depth, w2c, k, tolerance=TOLERANCE)
        # Tracks of matches that are true, or a clip that stands still would have the longest.
        kept = [match[true] for match, true in zip(matches.matches, confirmed, strict=True)]
        lengths = matches._replace(matches=kept).track_lengths()
        found[name] = Found(
            features=float(np.mean([len(x) for x in matches.keypoints])),
            inliers=matches.inliers(),
            true=int(sum(true.sum() for true in confirmed)),
            tracks=len(lengths),
            length=float(lengths.mean()) if len(lengths) else 0.0,
            long=int((lengths >= 5).sum()),
        )
    return found


def match_tables(found: Sequence[dict[str, Found]]) -> list[Table]:
    """Means over scenes, and differences of both memories to one and none."""

    def column(name: str, field: str) -> np.ndarray:
        return np.array([getattr(scene[name], field) for scene in found], float)

    rows = []
    for name in MATCHED:
        mean = {field: column(name, field).mean() for field in Found._fields}
        share = mean["true"] / max(mean["inliers"], 1)
        rows.append(
            (
                name,
                f"{mean['features']:.0f}",
                f"{mean['inliers']:.0f}",
                f"{mean['true']:.0f}",
                f"{100 * share:.0f} %",
                f"{mean['tracks']:.0f}",
                f"{mean['length']:.2f}",
                f"{mean['long']:.0f}",
            )
        )
    heads = (
        "frames of",
        "features a frame",
        "inliers",
        "true inliers",
        "share",
        "true tracks",
        "mean length",
        "of 5 frames and more",
    )
    caption = (
        f"What an independent matcher finds (COLMAP: SIFT, every pair of frames, epipolar "
        f"geometry of the known lens), {len(found)} scenes. Frames of 96 x 160 give few features "
        f"and are enlarged {UPSCALE} times, bicubically. A match is true when the true depth and "
        f"cameras put it within {TOLERANCE:g} px; tracks are joined from true matches, since a "
        "clip that stands still agrees with itself best of all."
    )
    pairs = []
    for name in (GLOBAL_ONLY, NO_MEMORY, REPROJECTION):
        cells = [
            format_difference(paired_difference(column(HARD, field), column(name, field)), 2)
            for field in ("inliers", "true", "length", "long")
        ]
        pairs.append((name, *cells))
    others = ("", "inliers", "true inliers", "mean length", "of 5 frames and more")
    return [
        Table(heads, rows, caption),
        Table(others, pairs, "Paired differences, 95 % intervals: both memories minus"),
    ]
