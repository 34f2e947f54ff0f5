"""What an independent matcher finds in frames: inliers and tracks by COLMAP (row S27).

Frames that agree in 3D let a matcher that knows nothing of this project find the same points in
them. COLMAP extracts SIFT features, matches every pair of frames and keeps what one epipolar
geometry of the given camera explains. Needs pycolmap, the extra `evaluate`.
"""

import importlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from worldstereo_jax.array_types import Array, Bool, Float, Int, ndarray
from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.point_projection import project_points, unproject_pixels

UPSCALE = 2
"""Frames are enlarged by this before features are extracted.

SIFT was made for photographs: a frame of 96 x 160 gives about 145 features as it is, 440 at twice
its size (bicubic), and no more at three or four times.
"""


class FeatureMatches(NamedTuple):
    """Verified matches of all pairs of f frames.

    keypoints: per frame the features found, pixels of the frames as given [n_i, 2], x and y.
    pairs: [p, 2], numbers of the two frames of every pair that has inliers.
    matches: per pair the features that match, [m, 2], indices into `keypoints`.
    """

    keypoints: list[Float[ndarray, "_ 2"]]
    pairs: Int[ndarray, "p 2"]
    matches: list[Int[ndarray, "_ 2"]]

    def inliers(self) -> int:
        """Inlier matches of all pairs together."""
        return sum(len(match) for match in self.matches)

    def track_lengths(self) -> Int[ndarray, "tracks"]:
        """In how many frames each point is found; points found in one frame are no tracks.

        A track joins all features that matches connect. One that holds two features of one frame
        contradicts itself and is left out, as in structure from motion.
        """
        return track_lengths([len(found) for found in self.keypoints], self.pairs, self.matches)


def match_frames(
    frames: Float[Array | ndarray, "f h w 3"],
    intrinsics: Float[Array | ndarray, "3 3"],
    *,
    upscale: int = UPSCALE,
) -> FeatureMatches:
    """SIFT features, exhaustive matching and geometric verification by COLMAP, on the CPU (S27).

    COLMAP's own options, except that the camera is known and that the random numbers of RANSAC
    are fixed: the same frames give the same matches.

    Args:
        frames: colours in [-1, 1], at least two.
        intrinsics: of all frames, pixels, without skew.
        upscale: see `UPSCALE`.

    Raises:
        InputError: without pycolmap, for fewer than two frames, or a camera with skew.
    """
    colmap = _pycolmap()
    k = np.asarray(intrinsics, np.float64)
    if len(frames) < 2:
        raise InputError(f"matching needs at least two frames, got {len(frames)}")
    if abs(k[0, 1]) > 1e-6 * k[0, 0]:
        raise InputError("intrinsics of frames to match must have no skew")
    height, width = (upscale * size for size in np.shape(frames)[1:3])
    with tempfile.TemporaryDirectory() as folder:
        images, database = Path(folder) / "images", Path(folder) / "matches.db"
        images.mkdir()
        for i, frame in enumerate(to_uint8(frames)):
            picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
            picture.save(images / f"{i:04d}.png")
        _fill_database(colmap, database, images, upscale * k)
        return _read_database(colmap, database, len(frames), upscale)


def true_matches(
    found: FeatureMatches,
    depth: Float[Array | ndarray, "f h w"],
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
    *,
    tolerance: float = 2.0,
) -> list[Bool[ndarray, "_"]]:
    """Of every pair's matches those that the true geometry confirms (row S27).

    A verified match may still be wrong: repeated textures, or a generated scene that agrees with
    itself but not with the world. A match is true when the first feature's point, at its true
    depth, falls within `tolerance` pixels of the second one.

    Args:
        found: matches of f frames.
        depth: true depth, camera z, world units; where it is 0 no match is true.
        w2c, intrinsics: the frames' true cameras, pixels.
        tolerance: pixels of the frames.
    """
    depth, w2c = np.asarray(depth), np.asarray(w2c)
    confirmed = []
    for (a, b), match in zip(found.pairs, found.matches, strict=True):
        here, there = found.keypoints[a][match[:, 0]], found.keypoints[b][match[:, 1]]
        column, row = np.floor(here).astype(int).T
        column = np.clip(column, 0, depth.shape[2] - 1)
        z = depth[a][np.clip(row, 0, depth.shape[1] - 1), column]
        points = unproject_pixels(here, z, w2c[a], intrinsics)
        pixels, ahead = project_points(points, w2c[b], intrinsics)
        off = np.linalg.norm(pixels - there, axis=-1)
        confirmed.append((z > 0) & (ahead > 0) & (off <= tolerance))
    return confirmed


def track_lengths(
    features: Iterable[int], pairs: Int[ndarray, "p 2"], matches: list[Int[ndarray, "_ 2"]]
) -> Int[ndarray, "tracks"]:
    """Lengths of the tracks that matches join; see `FeatureMatches.track_lengths`.

    Args:
        features: how many features each frame has.
        pairs, matches: as in `FeatureMatches`.
    """
    counts = np.asarray(list(features), int)
    start, total = np.cumsum(counts) - counts, int(counts.sum())
    if not matches or total == 0:
        return np.zeros(0, int)
    ends = [start[pair] + match for pair, match in zip(pairs, matches, strict=True)]
    a, b = np.concatenate(ends).T
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(total, total))
    number, track = connected_components(graph, directed=False)
    size = np.bincount(track, minlength=number)
    frame = np.repeat(np.arange(len(counts)), counts)
    views = np.unique(np.stack([track, frame]), axis=1)[0]
    distinct = np.bincount(views, minlength=number)
    return distinct[(distinct == size) & (size > 1)]


def _pycolmap() -> ModuleType:
    try:
        return importlib.import_module("pycolmap")
    except ImportError as error:
        raise InputError(
            "matching frames needs the evaluate extra: pip install worldstereo-jax[evaluate]"
        ) from error


def _fill_database(colmap: ModuleType, database: Path, images: Path, k: ndarray) -> None:
    camera = colmap.ImageReaderOptions(
        camera_model="PINHOLE",
        camera_params=",".join(str(x) for x in (k[0, 0], k[1, 1], k[0, 2], k[1, 2])),
    )
    # One thread each: images are numbered as they are read, RANSAC's numbers are the thread's.
    extraction, matching = colmap.FeatureExtractionOptions(), colmap.FeatureMatchingOptions()
    extraction.num_threads = matching.num_threads = 1
    verification = colmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = 0
    level = colmap.logging.minloglevel
    colmap.logging.minloglevel = colmap.logging.ERROR.value
    try:
        colmap.extract_features(
            database,
            images,
            camera_mode=colmap.CameraMode.SINGLE,
            reader_options=camera,
            extraction_options=extraction,
            device=colmap.Device.cpu,
        )
        colmap.match_exhaustive(
            database,
            matching_options=matching,
            verification_options=verification,
            device=colmap.Device.cpu,
        )
    finally:
        colmap.logging.minloglevel = level


def _read_database(colmap: ModuleType, path: Path, frames: int, upscale: int) -> FeatureMatches:
    keypoints = [np.zeros((0, 2))] * frames
    with colmap.Database.open(path) as database:
        number = {}
        for image in database.read_all_images():
            number[image.image_id] = int(Path(image.name).stem)
            found = np.asarray(database.read_keypoints(image.image_id), np.float64)
            keypoints[number[image.image_id]] = found[:, :2] / upscale
        pairs, matches = [], []
        for pair_id, geometry in zip(*database.read_two_view_geometries(), strict=True):
            match = np.asarray(geometry.inlier_matches, int)
            if len(match):
                pairs.append([number[i] for i in colmap.pair_id_to_image_pair(pair_id)])
                matches.append(match)
    return FeatureMatches(keypoints, np.asarray(pairs, int).reshape(-1, 2), matches)
