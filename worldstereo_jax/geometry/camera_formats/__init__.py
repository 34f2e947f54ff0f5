"""Cameras from the files of other programs and data sets, and back: one file per format.

`read_cameras` takes any of `FORMATS`. COLMAP's tables are parsed here, which needs no pycolmap.
"""

from worldstereo_jax.geometry.camera_formats.posed_cameras import (
    UNIT_SIZE,
    PosedCameras,
    fitted,
    inverse,
    resized,
)
from worldstereo_jax.geometry.camera_formats.registry import (
    FORMATS,
    detect_format,
    read_cameras,
    write_cameras,
)

__all__ = [
    "FORMATS",
    "UNIT_SIZE",
    "PosedCameras",
    "detect_format",
    "fitted",
    "inverse",
    "read_cameras",
    "resized",
    "write_cameras",
]
