"""Which stored views become references: the official retrieval, as pure jit-able functions.

Every target frame takes the bank view whose frustum overlaps its own best (row S26). When more
views than the budget are taken, quality-aware farthest-point sampling keeps the most diverse, and
the frames choose again among those. The overlap is that of the frusta's axis-aligned boxes, which
ignores occlusion; retrieval by visible surface is a separate function.

Cameras: `w2c` world-to-camera, OpenCV axes; `intrinsics` in pixels of a width x height image.
"""

import typing

import jax
import jax.numpy as jnp
from flax import struct

from worldstereo_jax.array_types import Array, Bool, Float, Int, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.geometry.rotations import quaternion_from_matrix
from worldstereo_jax.geometry.smooth import length, root

_HIGHEST = jax.lax.Precision.HIGHEST

NEAR, FAR = 0.1, 10.0
CAMERA_WEIGHT, IMAGE_WEIGHT, QUALITY_BIAS = 0.3, 0.7, 0.1


@struct.dataclass
@typing.no_type_check
class RetrievedViews:
    """The views to attend to, in the order of the first frame that chose each.

    view: int32 [k], index into the bank; 0 where not valid.
    position: int32 [k], the first target frame that chose it, counted as given (the official
        model receives frames 1.. of a clip, so this is that frame's number minus 1).
    valid: bool [k], false in the slots that no frame needed.
    frame_view: int32 [f], the view of every target frame.
    """

    view: Int[Array, "k"]
    position: Int[Array, "k"]
    valid: Bool[Array | ndarray, "k"]
    frame_view: Int[Array, "f"]


def frustum_box(
    w2c: Float[Array | ndarray, "v 4 4"],
    intrinsics: Float[Array | ndarray, "v 3 3"],
    *,
    width: int,
    height: int,
    near: float = NEAR,
    far: float = FAR,
) -> Float[Array, "v 2 3"]:
    """Return the axis-aligned world box (lowest, highest corner) of every camera's frustum.

    The frustum's corners lie at distances `near` and `far` along the unit rays through the image's
    four outer corners, world units.
    """
    corners = jnp.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], jnp.float32)
    rays = jnp.einsum("vij,kj->vki", jnp.linalg.inv(intrinsics), corners, precision=_HIGHEST)
    rays = rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)
    rays = jnp.einsum("vji,vkj->vki", w2c[:, :3, :3], rays, precision=_HIGHEST)
    centre = camera_centers(w2c)[:, None]
    points = jnp.concatenate([centre + near * rays, centre + far * rays], axis=1)
    return jnp.stack([points.min(axis=1), points.max(axis=1)], axis=1)


def box_iou(
    a: Float[Array | ndarray, "f 2 3"], b: Float[Array | ndarray, "v 2 3"]
) -> Float[Array, "f v"]:
    """Return intersection over union of every pair of axis-aligned boxes (lowest, highest)."""
    low = jnp.maximum(a[:, None, 0], b[None, :, 0])
    high = jnp.minimum(a[:, None, 1], b[None, :, 1])
    shared = jnp.prod(jnp.clip(high - low, 0), axis=-1)
    volume_a = jnp.prod(a[:, 1] - a[:, 0], axis=-1)[:, None]
    volume_b = jnp.prod(b[:, 1] - b[:, 0], axis=-1)[None, :]
    return shared / (volume_a + volume_b - shared)


def axis_angle_degrees(
    w2c_a: Float[Array | ndarray, "f 4 4"], w2c_b: Float[Array | ndarray, "v 4 4"]
) -> Float[Array, "f v"]:
    """Return the angle between the optical axes of every pair of cameras, degrees in [0, 180]."""
    a, b = w2c_a[:, None, 2, :3], w2c_b[None, :, 2, :3]
    # atan2 keeps small angles that arccos loses in float32.
    cross = length(jnp.cross(a, b))
    return jnp.degrees(jnp.arctan2(cross, jnp.sum(a * b, axis=-1)))


def overlap_score(
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "f 3 3"],
    bank_w2c: Float[Array | ndarray, "v 4 4"],
    bank_intrinsics: Float[Array | ndarray, "v 3 3"],
    *,
    width: int,
    height: int,
) -> Float[Array, "f v"]:
    """Return box IoU x clip(exp(5 (90 - angle) / 180), 0, 1) of every target frame and view.

    The factor is 1 up to 90 degrees between the optical axes and falls beyond.
    """
    overlap = box_iou(
        frustum_box(w2c, intrinsics, width=width, height=height),
        frustum_box(bank_w2c, bank_intrinsics, width=width, height=height),
    )
    angle = axis_angle_degrees(w2c, bank_w2c)
    return overlap * jnp.clip(jnp.exp(5 * (90 - angle) / 180), 0, 1)


def camera_features(w2c: Float[Array | ndarray, "v 4 4"]) -> Float[Array, "v 7"]:
    """Return camera centre, then w2c's rotation as quaternion x, y, z, w with w >= 0."""
    quaternion = quaternion_from_matrix(w2c[:, :3, :3])
    return jnp.concatenate([camera_centers(w2c), quaternion[:, 1:], quaternion[:, :1]], axis=-1)


def diversity_features(
    camera: Float[Array | ndarray, "n c"], image: Float[Array | ndarray, "n d"]
) -> Float[Array, "n c_plus_d"]:
    """Return [0.3 z(camera) | 0.7 z(image)], z-scored over the list with its population std.

    camera: `camera_features` of the listed views; image: a pooled descriptor of each (the official
    one is DINOv2's). A view listed several times counts as often in mean and std.
    """

    def score(x: Array | ndarray) -> Array:
        x = jnp.asarray(x)
        return (x - x.mean(axis=0, keepdims=True)) / (root(x.var(axis=0, keepdims=True)) + 1e-8)

    return jnp.concatenate([CAMERA_WEIGHT * score(camera), IMAGE_WEIGHT * score(image)], axis=-1)


def farthest_points(
    features: Float[Array | ndarray, "n c"], quality: Float[Array | ndarray, "n"], count: int
) -> Int[Array, "count"]:
    """Quality-aware farthest-point sampling: `count` indices into the list, int32.

    Starts at argmax(-|feature - centroid| + 0.1 q), then repeatedly takes the entry whose distance
    to the nearest one taken, times 1 + 0.1 (q - 0.5), is greatest; q is `quality` min-max
    normalised over the list.

    Raises InputError when `count` exceeds the list.
    """
    if not 1 <= count <= features.shape[0]:
        raise InputError(f"count must lie in 1..{features.shape[0]} listed views, not {count}")
    features, quality = jnp.asarray(features), jnp.asarray(quality)
    quality = (quality - quality.min()) / (quality.max() - quality.min() + 1e-8)
    to_centre = jnp.linalg.norm(features - features.mean(axis=0, keepdims=True), axis=-1)
    start = jnp.argmax(-to_centre + QUALITY_BIAS * quality)

    def take(carry: tuple[Array | ndarray, Array, Array], _: None) -> tuple[tuple, Array]:
        nearest, taken, last = carry
        distance = jnp.linalg.norm(features - features[last][None], axis=-1)
        nearest = jnp.minimum(nearest, distance)
        taken = taken.at[last].set(True)
        weighted = nearest * (1 + QUALITY_BIAS * (quality - 0.5))
        return (nearest, taken, jnp.argmax(jnp.where(taken, -jnp.inf, weighted))), last

    n = features.shape[0]
    carry = (jnp.full(n, jnp.inf, jnp.float32), jnp.zeros(n, bool), start)
    _, indices = jax.lax.scan(take, carry, None, length=count)
    return indices.astype(jnp.int32)


def select_references(
    score: Float[Array | ndarray, "f v"],
    valid: Bool[Array | ndarray, "v"],
    camera: Float[Array | ndarray, "v c"],
    image: Float[Array | ndarray, "v d"],
    quality: Float[Array | ndarray, "v"],
    *,
    count: int,
    bonus: Float[Array | ndarray, "f v"] | None = None,
) -> RetrievedViews:
    """Choose at most `count` views of the bank for `f` target frames.

    score: `overlap_score`; valid: false for empty bank slots, which are never chosen.
    camera, image, quality: `camera_features`, a pooled descriptor and `quality_score` per view.
    bonus: added to `score` in the first pass only (the official +1 for a view known to belong).

    If the frames choose more than `count` distinct views, `farthest_points` over the list of all
    f choices (duplicates included) keeps `count`, and every frame takes the best of those, so
    that fewer may remain. Raises InputError when `count` < 1.
    """
    if count < 1:
        raise InputError(f"count must be at least 1, not {count}")
    frames, views = score.shape
    camera, image, quality = jnp.asarray(camera), jnp.asarray(image), jnp.asarray(quality)
    score = jnp.where(valid[None], score, -jnp.inf)
    choice = jnp.argmax(score if bonus is None else score + bonus, axis=1)
    if frames > count:
        features = diversity_features(camera[choice], image[choice])
        picks = choice[farthest_points(features, quality[choice], count)]
        kept = jnp.zeros(views, bool).at[picks].set(True)
        again = jnp.argmax(jnp.where(kept[None], score, -jnp.inf), axis=1)
        distinct = jnp.zeros(views, jnp.int32).at[choice].set(1).sum()
        choice = jnp.where(distinct > count, again, choice)
    first = jnp.full(views, frames).at[choice].min(jnp.arange(frames))
    first = jnp.where(valid, first, frames)
    # A bank smaller than the budget leaves the last slots empty.
    first = jnp.pad(first, (0, max(0, count - views)), constant_values=frames)
    view = jnp.argsort(first)[:count]
    position = first[view]
    used = position < frames
    return RetrievedViews(
        view=jnp.where(used, view, 0).astype(jnp.int32),
        position=jnp.where(used, position, 0).astype(jnp.int32),
        valid=used,
        frame_view=choice.astype(jnp.int32),
    )


def quality_score(image: Float[Array | ndarray, "h w 3"]) -> Float[Array, ""]:
    """Return 0.4 log1p(var of Laplacian) + 0.3 grey entropy in bits + 0.3 grey std / 128.

    image: RGB in [-1, 1]; rounded to 0..255. The grey value weighs red as blue and blue as red, as
    the official code does, in the 15-bit fixed point of OpenCV; the Laplacian has 4 neighbours and
    mirrors at the border without repeating it.
    """
    levels = jnp.round((jnp.asarray(image, jnp.float32) + 1) * 127.5).astype(jnp.int32).clip(0, 255)
    red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
    grey = (3735 * red + 19235 * green + 9798 * blue + 16384) >> 15
    share = jnp.bincount(grey.reshape(-1), length=256) / grey.size
    entropy = -jnp.sum(share * jnp.log2(jnp.where(share > 0, share, 1)))
    grey = grey.astype(jnp.float32)
    edge = jnp.pad(grey, 1, mode="reflect")
    around = edge[:-2, 1:-1] + edge[2:, 1:-1] + edge[1:-1, :-2] + edge[1:-1, 2:]
    return 0.4 * jnp.log1p(jnp.var(around - 4 * grey)) + 0.3 * entropy + 0.3 * grey.std() / 128
