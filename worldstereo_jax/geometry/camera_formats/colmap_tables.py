"""What the tables of a COLMAP model hold, whether written as text or binary; its camera models."""

import dataclasses

import numpy as np

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.errors import InputError

PARAMETERS = {
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fx fy cx cy",
    "SIMPLE_RADIAL": "f cx cy k",
    "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2",
    "OPENCV_FISHEYE": "fx fy cx cy k1 k2 k3 k4",
    "FULL_OPENCV": "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6",
    "FOV": "fx fy cx cy omega",
    "SIMPLE_RADIAL_FISHEYE": "f cx cy k",
    "RADIAL_FISHEYE": "f cx cy k1 k2",
    "THIN_PRISM_FISHEYE": "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1",
    "RAD_TAN_THIN_PRISM_FISHEYE": "fx fy cx cy k0 k1 k2 k3 k4 k5 p0 p1 s0 s1 s2 s3",
    "SIMPLE_DIVISION": "f cx cy k",
    "DIVISION": "fx fy cx cy k",
    "SIMPLE_FISHEYE": "f cx cy",
    "FISHEYE": "fx fy cx cy",
    "EUCM": "fx fy cx cy alpha beta",
    "EQUIRECTANGULAR": "w h",
}
"""Parameters of COLMAP's camera models, in the order of the models' numbers in binary files."""

_PINHOLE_IF_ZERO = frozenset(
    {"SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV"}
)
"""Models that are the pinhole camera where all but focal length and centre is 0."""


@dataclasses.dataclass(frozen=True)
class Lens:
    """A row of the table of cameras; `where` names it in its file."""

    model: str
    width: int
    height: int
    parameters: tuple[float, ...]
    where: str


@dataclasses.dataclass(frozen=True)
class Registered:
    """A row of the table of images: quaternion (w, x, y, z) and translation, world to camera."""

    name: str
    lens: int
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]
    where: str


def pinhole(lens: Lens) -> Float[ndarray, "4"]:
    """The lens as (fx, fy, cx, cy) in pixels, from the image's corner.

    Raises:
        InputError: for a lens with distortion, and for models that are never a pinhole.
    """
    values = dict(zip(PARAMETERS[lens.model].split(), lens.parameters, strict=True))
    focal = {"f", "fx", "fy", "cx", "cy"}
    bent = [name for name, value in values.items() if name not in focal and value != 0]
    if lens.model not in _PINHOLE_IF_ZERO or bent:
        raise InputError(
            f"{lens.where}: its lens ({lens.model}) is no pinhole; undistort the model and its "
            "images with COLMAP's image_undistorter, and give what it writes."
        )
    fx, fy = (values.get(name, values.get("f", 0.0)) for name in ("fx", "fy"))
    return np.array([fx, fy, values["cx"], values["cy"]])
