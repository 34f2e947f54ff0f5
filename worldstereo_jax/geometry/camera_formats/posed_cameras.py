"""Cameras of recorded frames in this project's conventions, whatever file they come from.

World to camera, OpenCV axes, pixel centres at +0.5. Everything is float64 here: recordings may lie
far from their origin, and time stamps count from 1970.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from worldstereo_jax.array_types import Float, Int, ndarray
from worldstereo_jax.errors import InputError

_ROTATION_TOLERANCE = 1e-3
_QUATERNION_TOLERANCE = 1e-2
_SAME_PROPORTIONS = 0.02

UNIT_SIZE = (1, 1)
"""Size of the images whose intrinsics are shares of width and height."""

Where = Callable[[int], str]
"""From a camera's place in a file to words that name it there, for an error's sentence."""


@dataclasses.dataclass(frozen=True)
class PosedCameras:
    """Cameras of frames, in the file's order of frames.

    Attributes:
        w2c: world-to-camera matrices [f, 4, 4], in the file's own world and unit.
        intrinsics: [f, 3, 3] in pixels of `size`, centres at +0.5; None where the file has none.
        size: (height, width) of the images; `UNIT_SIZE` where the intrinsics are shares of it,
            None where the file does not tell.
        names: of the frames, as the file has them: an image's path, a time stamp or a number.
        times: seconds [f], None where the file has none.
        metric: whether the format's unit is the metre; else it is any.
        points: of the surfaces [n, 3], where the file has some.
        depth_files: one a frame, where the file names some; paths as `names`.
    """

    w2c: Float[ndarray, "f 4 4"]
    intrinsics: Float[ndarray, "f 3 3"] | None
    size: tuple[int, int] | None
    names: tuple[str, ...]
    times: Float[ndarray, "f"] | None = None
    metric: bool = False
    points: Float[ndarray, "n 3"] | None = None
    depth_files: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.w2c)

    def take(self, chosen: Int[ndarray, "k"]) -> "PosedCameras":
        """Some of the frames, in the order asked for."""
        return dataclasses.replace(
            self,
            w2c=self.w2c[chosen],
            intrinsics=None if self.intrinsics is None else self.intrinsics[chosen],
            names=tuple(self.names[i] for i in chosen),
            times=None if self.times is None else self.times[chosen],
            depth_files=None
            if self.depth_files is None
            else tuple(self.depth_files[i] for i in chosen),
        )


def inverse(rigid: Float[ndarray, "*batch 4 4"]) -> Float[ndarray, "*batch 4 4"]:
    """Inverse of rigid transforms in float64: world-to-camera becomes camera-to-world, and back."""
    turned = np.swapaxes(rigid[..., :3, :3], -1, -2)
    result = np.zeros(rigid.shape)
    result[..., :3, :3] = turned
    result[..., :3, 3] = -np.einsum("...ij,...j->...i", turned, rigid[..., :3, 3])
    result[..., 3, 3] = 1
    return result


def rigid_from_quaternions(
    xyzw: Float[ndarray, "f 4"], translation: Float[ndarray, "f 3"], where: Where
) -> Float[ndarray, "f 4 4"]:
    """Rigid transforms of unit quaternions (x, y, z, w; either sign) and translations.

    Raises:
        InputError: for a quaternion whose length is not 1 within a hundredth.
    """
    length = np.linalg.norm(xyzw, axis=-1)
    for i in np.flatnonzero(np.abs(length - 1) > _QUATERNION_TOLERANCE)[:1].tolist():
        raise InputError(f"{where(i)}: the quaternion has length {length[i]:.4g} instead of 1.")
    return _rigid(Rotation.from_quat(xyzw).as_matrix(), translation)


def rigid_from_rows(matrices: Float[ndarray, "f 3 4"], where: Where) -> Float[ndarray, "f 4 4"]:
    """Rigid transforms of matrices [R | t], R rounded as files round it and made exact here.

    Raises:
        InputError: for a matrix R that is no rotation within a thousandth.
    """
    rotation = matrices[:, :, :3]
    error = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3)).max(axis=(1, 2))
    wrong = (error > _ROTATION_TOLERANCE) | (np.linalg.det(rotation) < 0)
    for i in np.flatnonzero(wrong)[:1].tolist():
        raise InputError(f"{where(i)}: the left 3 x 3 of its matrix is no rotation.")
    left, _, right = np.linalg.svd(rotation)
    return _rigid(left @ right, matrices[:, :, 3])


def intrinsic_matrices(
    fx: Float[ndarray, "f"],
    fy: Float[ndarray, "f"],
    cx: Float[ndarray, "f"],
    cy: Float[ndarray, "f"],
) -> Float[ndarray, "f 3 3"]:
    """Intrinsics without skew."""
    result = np.zeros((len(fx), 3, 3))
    result[:, 0, 0], result[:, 1, 1], result[:, 2, 2] = fx, fy, 1
    result[:, 0, 2], result[:, 1, 2] = cx, cy
    return result


def check_focal(intrinsics: Float[ndarray, "f 3 3"], where: Where) -> None:
    """Refuse a lens whose focal lengths are not positive.

    Raises:
        InputError: naming the first one.
    """
    focal = np.minimum(intrinsics[:, 0, 0], intrinsics[:, 1, 1])
    for i in np.flatnonzero(focal <= 0)[:1].tolist():
        raise InputError(f"{where(i)}: both focal lengths must be positive.")


def resized(
    intrinsics: Float[ndarray, "f 3 3"],
    size: tuple[float | int, float | int],
    target: tuple[float | int, float | int],
) -> Float[ndarray, "f 3 3"]:
    """`cameras.resize_intrinsics` in float64; sizes are (height, width)."""
    return intrinsics * np.array([target[1] / size[1], target[0] / size[0], 1.0])[:, None]


def fitted(
    intrinsics: Float[ndarray, "f 3 3"], size: tuple[int, int], target: tuple[int, int]
) -> Float[ndarray, "f 3 3"]:
    """Intrinsics once images of `size` are made to fill `target`, both (height, width).

    Of the same proportions within 2 %, as they are or with pixels made square, they are resized,
    each axis by its own factor; of others both axes get one factor, and what sticks out is cut off
    evenly.
    """
    square = (float(size[0]), size[1] * float(intrinsics[0, 1, 1] / intrinsics[0, 0, 0]))
    # Shares of an image say nothing of its proportions but by its pixels.
    for height, width in (square,) if size == UNIT_SIZE else (size, square):
        if abs(math.log(width * target[0] / (height * target[1]))) < _SAME_PROPORTIONS:
            return resized(intrinsics, size, target)
    factor = max(target[0] / square[0], target[1] / square[1])
    filling = (factor * square[0], factor * square[1])
    result = resized(intrinsics, size, filling)
    result[:, :2, 2] += (np.array([target[1], target[0]]) - [filling[1], filling[0]]) / 2
    return result


def by_number(names: Sequence[str]) -> Int[ndarray, "f"]:
    """Order of names in which numbers count as numbers: frame_2.png comes before frame_10.png."""
    keys = [
        [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]
        for name in names
    ]
    return np.array(sorted(range(len(names)), key=keys.__getitem__), dtype=np.int64)


def _rigid(
    rotation: Float[ndarray, "f 3 3"], translation: Float[ndarray, "f 3"]
) -> Float[ndarray, "f 4 4"]:
    result = np.zeros((len(rotation), 4, 4))
    result[:, :3, :3], result[:, :3, 3], result[:, 3, 3] = rotation, translation, 1
    return result
