"""Quality against how far a pixel is from what is stored: by angle, by distance, never seen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Bool, Float, Int, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.geometry.points import depth_to_points
from worldstereo_jax.memory.correspondence import bank_correspondence


class NearestView(NamedTuple):
    """Of every pixel's surface point the stored views that see it, by true geometry.

    seen: [f, h, w], at least one does. angle: [f, h, w], least angle at the point between the
    rays to the pixel's camera and to such a view, radians. distance: [f, h, w], least distance
    between those cameras, world units. Both are infinite where none sees the point. view:
    [f, h, w], number of the view at the least angle, -1 where none sees the point.
    """

    seen: Bool[Array, "f h w"]
    angle: Float[Array, "f h w"]
    distance: Float[Array, "f h w"]
    view: Int[Array, "f h w"]


@jax.jit
def nearest_view(
    depth: Float[Array | ndarray, "f h w"],
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "f 3 3"],
    stored_depth: Float[Array | ndarray, "v h w"],
    stored_w2c: Float[Array | ndarray, "v 4 4"],
    stored_intrinsics: Float[Array | ndarray, "v 3 3"],
) -> NearestView:
    """How far every pixel of a clip is from the nearest stored view of the same surface.

    depth, w2c, intrinsics: of the clip, true; camera z in world units, 0 = unknown, which counts
    as not seen. stored_*: of the stored views, true as well.
    """
    valid = jnp.ones((stored_w2c.shape[0],), bool)
    stored = (jnp.asarray(stored_depth), jnp.asarray(stored_w2c), jnp.asarray(stored_intrinsics))
    centres = camera_centers(stored_w2c)

    def one(frame: tuple[Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        frame_depth, pose, k = frame
        _, found = bank_correspondence(frame_depth, pose, k, *stored, valid)
        points = depth_to_points(frame_depth, pose, k)
        eye = camera_centers(pose)
        mine = points - eye[None, None]
        theirs = points[None] - centres[:, None, None]
        # atan2 keeps small angles, which arccos of a cosine near 1 loses.
        sine = jnp.linalg.norm(
            jnp.cross(jnp.broadcast_to(mine[None], theirs.shape), theirs), axis=-1
        )
        angle = jnp.arctan2(sine, (mine[None] * theirs).sum(-1))
        away = jnp.linalg.norm(centres - eye[None], axis=-1)[:, None, None]
        seen = found.any(0)
        angle = jnp.where(found, angle, jnp.inf)
        return (
            seen,
            angle.min(0),
            jnp.where(found, jnp.broadcast_to(away, found.shape), jnp.inf).min(0),
            jnp.where(seen, jnp.argmin(angle, 0), -1).astype(jnp.int32),
        )

    clip = (jnp.asarray(depth), jnp.asarray(w2c), jnp.asarray(intrinsics))
    return NearestView(*jax.lax.map(one, clip))


class BinnedError(NamedTuple):
    """Sums of squared error per bin: of several clips they add up.

    total: [bins], sum over pixels of the mean over channels. pixels: [bins], how many.
    """

    total: Float[ndarray, "bins"]
    pixels: Int[ndarray, "bins"]

    def psnr(self) -> Float[ndarray, "bins"]:
        """In dB, for colours in [-1, 1]; NaN for bins without pixels."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return 10 * np.log10(4.0 * self.pixels / self.total)


def binned_error(
    video: Float[Array | ndarray, "f h w 3"],
    truth: Float[Array | ndarray, "f h w 3"],
    value: Float[Array | ndarray, "f h w"],
    edges: Float[ndarray, "bins_plus_1"],
) -> BinnedError:
    """Squared error by the value of each pixel, for instance its angle to the nearest view.

    Args:
        video, truth: colours in [-1, 1].
        value: of each pixel; those outside all bins do not count.
        edges: ascending; bin i holds edges[i] <= value < edges[i + 1].

    Raises:
        InputError: when the edges do not ascend.
    """
    edges = np.asarray(edges, np.float64)
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise InputError(f"edges of bins must ascend, got {edges.tolist()}")
    error = np.square(np.asarray(video, np.float64) - np.asarray(truth, np.float64)).mean(-1)
    place = np.digitize(np.asarray(value, np.float64).ravel(), edges) - 1
    inside = (place >= 0) & (place < len(edges) - 1)
    bins = len(edges) - 1
    return BinnedError(
        total=np.bincount(place[inside], error.ravel()[inside], minlength=bins),
        pixels=np.bincount(place[inside], minlength=bins),
    )
