"""Trajectories brought to a common frame and scale before a model sees them.

The official normalisation, step by step: the first camera becomes the world frame, centres are
shifted by their robust mean, and everything is scaled until the first camera stands at distance
`scale` from the origin. Note that after the shift the first camera is not the identity any more:
it keeps its rotation only.
"""

import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.geometry.cameras import camera_centers, invert_rigid
from worldstereo_jax.geometry.smooth import length

_HIGHEST = lax.Precision.HIGHEST
_OUTLIER_QUANTILE = 0.97
_OUTLIER_FACTOR = 10.0
_THRESHOLD_CAP = 1e6
_NEAR_ZERO = 1e-5


def normalise_trajectory(
    w2c: Float[Array | ndarray, "f 4 4"], scale: float = 2.0
) -> Float[Array, "f 4 4"]:
    """World-to-camera matrices [f, 4, 4] in the normalised world frame.

    The shift is the mean of the centres whose distance to the (per axis, lower) median centre is
    at most 10 times the 97th percentile of those distances, at most 1e6. The factor brings the
    first centre to distance `scale`; when that distance is below 1e-5 it is `scale` itself.
    """
    w2c = jnp.asarray(w2c, jnp.float32)
    anchor = invert_rigid(w2c[0])
    shift, factor = _statistics(_rebase(w2c, anchor), scale)
    return _apply(_rebase(w2c, anchor), shift, factor)


def normalise_unified(
    w2c: Float[Array | ndarray, "f 4 4"],
    w2c_reference: Float[Array | ndarray, "r 4 4"],
    scale: float = 2.0,
) -> tuple[Float[Array, "f 4 4"], Float[Array, "r 4 4"]]:
    """Targets and references in one frame: both moved with the statistics of the targets alone."""
    w2c = jnp.asarray(w2c, jnp.float32)
    anchor = invert_rigid(w2c[0])
    targets = _rebase(w2c, anchor)
    references = _rebase(jnp.asarray(w2c_reference, jnp.float32), anchor)
    shift, factor = _statistics(targets, scale)
    return _apply(targets, shift, factor), _apply(references, shift, factor)


def _rebase(w2c: Float[Array, "v 4 4"], anchor: Float[Array, "4 4"]) -> Float[Array, "v 4 4"]:
    return jnp.einsum("vij,jk->vik", w2c, anchor, precision=_HIGHEST)


def _statistics(
    w2c: Float[Array, "f 4 4"], scale: float
) -> tuple[Float[Array, "3"], Float[Array, ""]]:
    centres = camera_centers(w2c)
    # The lower median: the official code takes the lower of the two middle values, no mean.
    median = jnp.sort(centres, axis=0)[(centres.shape[0] - 1) // 2]
    distance = jnp.linalg.norm(centres - median[None], axis=-1)
    threshold = jnp.minimum(
        _OUTLIER_FACTOR * jnp.quantile(distance, _OUTLIER_QUANTILE), _THRESHOLD_CAP
    )
    inlier = (distance <= threshold)[:, None].astype(jnp.float32)
    shift = jnp.sum(centres * inlier, axis=0) / jnp.sum(inlier)
    first = length(centres[0] - shift)
    factor = jnp.where(first < _NEAR_ZERO, scale, scale / jnp.maximum(first, _NEAR_ZERO))
    return shift, factor.astype(jnp.float32)


def _apply(
    w2c: Float[Array, "v 4 4"], shift: Float[Array, "3"], factor: Float[Array, ""]
) -> Float[Array, "v 4 4"]:
    """Move the origin to `shift` and multiply distances by `factor`; rotations stay."""
    moved = w2c[:, :3, 3] + jnp.einsum("vij,j->vi", w2c[:, :3, :3], shift, precision=_HIGHEST)
    return w2c.at[:, :3, 3].set(moved * factor)
