"""Recorded cameras, retrieval and unprojection of the official code, compared with ours."""

import functools
import re

import jax
import numpy as np

from worldstereo_jax.data.images import from_uint8
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.golden_arrays import GoldenArrays, index_error, relative_error
from worldstereo_jax.evaluation.golden_models import Errors
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.geometry.cameras import camera_vector, plucker_rays
from worldstereo_jax.geometry.normalisation import normalise_trajectory, normalise_unified
from worldstereo_jax.geometry.points import compact, unproject_image
from worldstereo_jax.memory.retrieval import (
    FAR,
    NEAR,
    axis_angle_degrees,
    box_iou,
    camera_features,
    diversity_features,
    farthest_points,
    frustum_box,
    overlap_score,
    quality_score,
)


@functools.partial(jax.jit, static_argnames=("height", "width"))
def _camera_outputs(w2c, references, normalised, intrinsics, *, height, width):
    unified = normalise_unified(w2c, references)
    rays = plucker_rays(normalised, intrinsics, height, width)
    return normalise_trajectory(w2c), *unified, camera_vector(w2c)[:, :4], rays[None]


def check_cameras(arrays: GoldenArrays) -> Errors:
    """Normalised trajectories, camera vectors, and rays with the official offset."""
    height, width = (int(size) for size in arrays["hw"])

    found = _camera_outputs(
        arrays["w2c"],
        arrays["w2c_ref"],
        arrays["normalised"],
        arrays["K"],
        height=height,
        width=width,
    )
    names = ("normalised", "unified_w2c", "unified_w2c_ref", "quat")
    errors = {
        name: relative_error(array, arrays[name])
        for name, array in zip(names, found[:-1], strict=True)
    }
    rays = np.transpose(arrays["plucker"], (0, 2, 3, 4, 1))
    return {**errors, "plucker": relative_error(found[-1], rays)}


def check_retrieval(arrays: GoldenArrays) -> Errors:
    """Overlap, angle and best view; farthest points, image quality and the frames kept."""
    width, height = (int(size) for size in arrays["image_wh"])
    near, far = (float(x) for x in arrays["near_far"])
    if (near, far) != (NEAR, FAR):
        raise InputError(f"{arrays.path}: near_far is {near, far}, expected {NEAR, FAR}")
    size = {"width": width, "height": height}
    targets, bank, bank_k = arrays["target_w2c"], arrays["ref_w2c"], arrays["ref_K"]
    count = arrays["fps_indices"].size

    @jax.jit
    def compute(targets, target_k, bank, bank_k, image_features, quality):
        boxes = (frustum_box(targets, target_k, **size), frustum_box(bank, bank_k, **size))
        features = camera_features(bank)
        chosen = farthest_points(diversity_features(features, image_features), quality, count)
        score = overlap_score(targets, target_k, bank, bank_k, **size)
        return box_iou(*boxes), axis_angle_degrees(targets, bank), score, features, chosen

    target_k = np.repeat(bank_k[:1], len(targets), axis=0)
    found = compute(targets, target_k, bank, bank_k, arrays["image_features"], arrays["quality"])
    overlap, angle, score, features, chosen = (np.asarray(array) for array in found)
    best = score.argmax(1)
    images = from_uint8(arrays["quality_images"])
    quality = jax.jit(lambda images: jax.lax.map(quality_score, images))(images)
    rows = np.arange(len(targets))
    errors = {
        "overlap": relative_error(overlap, arrays["overlap"]),
        "angle_deg": relative_error(angle, arrays["angle_deg"]),
        "best_index": index_error(best, arrays["best_index"]),
        "best_score": relative_error(score.max(1), arrays["best_score"]),
        "best_angle": relative_error(angle[rows, best], arrays["best_angle"]),
        "camera_features": relative_error(features, arrays["camera_features"]),
        "fps_indices": index_error(chosen, arrays["fps_indices"]),
        "quality_scores": relative_error(quality, arrays["quality_scores"]),
    }
    for name in arrays:
        counts = re.fullmatch(r"align_indices_(\d+)_(\d+)", name)
        if counts:
            kept = keyframe_indices(int(counts[1]), int(counts[2]))
            errors[name] = index_error(kept, arrays[name])
    return errors


def check_unprojection(arrays: GoldenArrays) -> Errors:
    """Which pixels of a depth map become points, where, and in which colours."""

    @jax.jit
    def unproject(image, depth, w2c, intrinsics, valid):
        # The recorded function itself, whose caller had not set invalid depth to 0.
        return unproject_image(image, depth, w2c, intrinsics, valid=valid, invalid_depth="as_given")

    cloud = unproject(
        arrays["image"][0].transpose(1, 2, 0),
        arrays["depth"],
        arrays["w2c"][0],
        arrays["K"][0],
        ~arrays["invalid_mask"],
    )
    points, colors = compact(cloud)
    return {
        "points": relative_error(points, arrays["points"]),
        "colors": relative_error(colors, arrays["colors"]),
    }
