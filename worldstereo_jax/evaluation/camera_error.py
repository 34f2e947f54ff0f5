"""How far the cameras of a generated clip are from those it was asked to follow.

All functions take world-to-camera poses [f, 4, 4], OpenCV axes, and compare camera-to-world poses
relative to the first camera, T_i = c2w_0^-1 c2w_i, so that the first error is always 0. A poses
estimate has a scale of its own; each measure says how it is removed.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.geometry.cameras import camera_centers, invert_rigid

Poses = Float[Array | ndarray, "f 4 4"]
TranslationScale = Literal["own", "truth"]


def rotation_angles(found: Poses, truth: Poses) -> Float[Array, "f"]:
    """Return the angle between the first-frame-relative rotations of every frame, radians.

    arccos((tr(R_found^T R_truth) - 1) / 2), computed as atan2(sin, cos) so that small angles keep
    their precision in float32.
    """
    a, b = _relative(found)[:, :3, :3], _relative(truth)[:, :3, :3]
    difference = jnp.einsum("fji,fjk->fik", a, b)
    cosine = (jnp.trace(difference, axis1=-2, axis2=-1) - 1) / 2
    skew = difference - jnp.swapaxes(difference, -1, -2)
    sine = jnp.sqrt(skew[:, 2, 1] ** 2 + skew[:, 0, 2] ** 2 + skew[:, 1, 0] ** 2) / 2
    return jnp.arctan2(sine, cosine)


def rotation_error(found: Poses, truth: Poses) -> Float[Array, ""]:
    """RotErr: sum over frames of `rotation_angles`, radians."""
    return jnp.sum(rotation_angles(found, truth))


def translation_error(found: Poses, truth: Poses, *, scale: TranslationScale) -> Float[Array, ""]:
    """TransErr (CamI2V): sum over frames of |t_found - t_truth|, without unit.

    scale: what the translations are divided by, the greatest distance from the first camera:
        "own": of each trajectory by itself, for poses of unknown scale;
        "truth": of the true trajectory for both, for poses in the truth's scale.
    """
    t_found, t_truth = _relative(found)[:, :3, 3], _relative(truth)[:, :3, 3]
    truth_scale = _extent(t_truth)
    found_scale = _extent(t_found) if scale == "own" else truth_scale
    difference = t_found / found_scale - t_truth / truth_scale
    return jnp.sum(jnp.linalg.norm(difference, axis=-1))


class WorldScoreError(NamedTuple):
    """Mean rotation error in degrees and mean translation error in the truth's unit."""

    rotation_degrees: Float[Array, ""]
    translation: Float[Array, ""]


def worldscore_error(found: Poses, truth: Poses) -> WorldScoreError:
    """WorldScore's variant: means over frames, degrees, with the least-squares scale.

    The scale s minimises sum |s t_found - t_truth|^2 over the first-frame-relative translations;
    a trajectory that does not move keeps its own scale.
    """
    t_found, t_truth = _relative(found)[:, :3, 3], _relative(truth)[:, :3, 3]
    energy = jnp.sum(t_found**2)
    scale = jnp.where(energy > 0, jnp.sum(t_found * t_truth) / jnp.maximum(energy, 1e-20), 1.0)
    return WorldScoreError(
        rotation_degrees=jnp.mean(jnp.degrees(rotation_angles(found, truth))),
        translation=jnp.mean(jnp.linalg.norm(scale * t_found - t_truth, axis=-1)),
    )


def trajectory_error(found: Poses, truth: Poses) -> Float[Array, ""]:
    """ATE: root mean square distance of camera centres after the best Sim(3), truth's unit."""
    centres, target = camera_centers(found), camera_centers(truth)
    scale, rotation, translation = umeyama(centres, target)
    aligned = scale * jnp.einsum("ij,nj->ni", rotation, centres) + translation[None]
    return jnp.sqrt(jnp.mean(jnp.sum((aligned - target) ** 2, axis=-1)))


def umeyama(
    source: Float[Array | ndarray, "n 3"], target: Float[Array | ndarray, "n 3"]
) -> tuple[Float[Array, ""], Float[Array, "3 3"], Float[Array, "3"]]:
    """Return (scale, rotation, translation) that minimise sum |s R source + t - target|^2.

    Umeyama 1991, equations 39 to 42; the rotation is proper also for reflected or planar points.
    Points that all coincide get scale 0.
    """
    source, target = jnp.asarray(source), jnp.asarray(target)
    mean_source, mean_target = source.mean(axis=0), target.mean(axis=0)
    x, y = source - mean_source[None], target - mean_target[None]
    u, singular, vt = jnp.linalg.svd(y.T @ x / len(x))
    sign = jnp.where(jnp.linalg.det(u) * jnp.linalg.det(vt) < 0, -1.0, 1.0)
    signs = jnp.stack([jnp.ones((), jnp.float32), jnp.ones((), jnp.float32), sign])
    rotation = (u * signs[None]) @ vt
    variance = jnp.mean(jnp.sum(x**2, axis=-1))
    scale = jnp.sum(singular * signs) / jnp.maximum(variance, 1e-20)
    return scale, rotation, mean_target - scale * rotation @ mean_source


def _relative(w2c: Poses) -> Float[Array, "f 4 4"]:
    """Camera-to-world of every camera in the first camera's frame: w2c_0 c2w_i."""
    return jnp.einsum("ij,fjk->fik", jnp.asarray(w2c)[0], invert_rigid(w2c))


def _extent(translation: Float[Array, "f 3"]) -> Float[Array, ""]:
    return jnp.maximum(jnp.max(jnp.linalg.norm(translation, axis=-1)), 1e-9)
