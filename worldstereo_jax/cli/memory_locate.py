"""`worldstereo memory locate`: where in the world of a memory a photograph was taken."""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.cli.arguments import check_can_be_made
from worldstereo_jax.cli.memory_input import A_MEMORY, open_memory
from worldstereo_jax.data.images import read_image, resize_image, write_uint8_image
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.location_picture import location_picture
from worldstereo_jax.geometry.camera_io import write_cameras_json
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.memory.entries import EntryBank, map_entries
from worldstereo_jax.memory.entry_pose import LocatedCamera, locate_camera
from worldstereo_jax.memory.entry_views import has_view
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory

LEAST_INLIERS = 24
"""Matches that must agree on a place; of pictures of other rooms up to six did."""
_LEAST_SIDE = 32
_SLOTS = 4096  # entries by which the size of the program grows
_MOST_DEGREES = 150.0


def add_locate(actions) -> None:
    """Add the command to the subparsers of `worldstereo memory`."""
    what = "find where a photograph was taken, from what of the memory it shows"
    parser = actions.add_parser("locate", help=what, description=what)
    parser.add_argument("folder", **A_MEMORY)
    parser.add_argument(
        "photo", type=Path, metavar="PHOTO", help="an image, held about as upright as the views"
    )
    parser.add_argument(
        "--fov",
        type=float,
        metavar="DEGREES",
        help="the photograph's field of view from left to right (default: its longer side sees as "
        "much as that of the memory's first view)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="a new .json file for --camera: a path from the stored view that shows most of the "
        "same to the place found; beside it, as .png, what was matched is drawn",
    )
    parser.set_defaults(act=_locate)


class _Photo(NamedTuple):
    """A photograph as large as the views of a memory show the same, and its lens in its pixels."""

    image: Float[ndarray, "h w 3"]
    intrinsics: Float[ndarray, "3 3"]


def _locate(options: argparse.Namespace) -> None:
    """Locate, say how sure that is, write the path and the picture."""
    out, picture = options.out, options.out.with_suffix(".png")
    if out.suffix.lower() != ".json":
        raise InputError(f"--out {out} must end in .json")
    for path in (out, picture):
        if path.exists():
            raise InputError(f"--out {out}: {path} is there already; name a new file")
    check_can_be_made(out, "--out")
    if options.fov is not None and not 0 < options.fov < _MOST_DEGREES:
        raise InputError(f"--fov must lie between 0 and {_MOST_DEGREES:g}, not {options.fov:g}")
    photo = read_image(options.photo)
    folder, _, memory = open_memory(options.folder)
    stereo = memory.stereo
    if int(stereo.count) == 0 or not bool(memory.entries.valid.any()):
        raise InputError(f"{folder} holds no surfaces, so that no photograph shows any of them")
    # Without the room for more, every slot of which a photograph would be compared with.
    used = -(-int(memory.entries.count) // _SLOTS) * _SLOTS
    entries = map_entries(lambda field: field[:used], memory.entries)
    rows, columns = stereo.images.shape[1:3]
    size = (rows, columns)
    lens = np.asarray(stereo.intrinsics[0], np.float64)
    scaled = _as_large(photo, options.fov, lens, size, options.photo)
    located = locate_camera(
        entries, jnp.asarray(scaled.image), jnp.asarray(scaled.intrinsics), jax.random.key(0)
    )
    agree, matched = int(located.inliers), int(located.matched.sum())
    if agree < LEAST_INLIERS:
        raise InputError(
            f"{options.photo} cannot be located in {folder}: {agree} of its matches with what is "
            f"stored agree on a place, and at least {LEAST_INLIERS} are needed; it must show the "
            "same surfaces, about as large and as upright as a stored view does, and --fov must be "
            "right"
        )
    view = _shared_view(entries, located, int(stereo.count))
    lenses = jnp.stack([stereo.intrinsics[view], jnp.asarray(_framed(scaled, size, lens))])
    write_cameras_json(out, jnp.stack([stereo.w2c[view], located.pose.w2c]), lenses, size)
    title = f"{options.photo} in {folder}, beside view {view}"
    drawn = location_picture(
        scaled.image, scaled.intrinsics, located, entries, stereo, view, title=title
    )
    write_uint8_image(picture, drawn[..., :3])
    print(_describe(options, located, stereo, view, agree, matched, scaled))
    print(out)
    print(picture)


def _as_large(
    photo: Float[ndarray, "ph pw 3"],
    fov: float | None,
    lens: Float[ndarray, "3 3"],
    size: tuple[int, int],
    name: Path,
) -> _Photo:
    """The photograph with the focal lengths of a stored view: it shows surfaces as large as that.

    Args:
        photo: of any size, with square pixels.
        fov: degrees from left to right, None for as much along the longer side as the view's.
        lens, size: of the view, pixels; its pixels need not be square.
        name: for the sentence of a photograph that would be too small.
    """
    height, width = photo.shape[:2]
    if fov is not None:
        focal = 0.5 * width / np.tan(np.radians(fov) / 2)
    else:
        # Sides of the view in pixels as wide as high.
        sides = size[0] * lens[0, 0] / lens[1, 1], size[1]
        focal = lens[0, 0] / max(sides) * max(height, width)
    wanted = [round(side * f / focal) for side, f in ((height, lens[1, 1]), (width, lens[0, 0]))]
    if min(wanted) < _LEAST_SIDE:
        raise InputError(
            f"{name} would cover {wanted[1]}x{wanted[0]} pixels of a stored view, too few to find "
            f"anything by; a wider photograph is needed, or another --fov"
        )
    rows, columns = wanted
    intrinsics = np.array(
        [
            [focal * columns / width, 0, columns / 2],
            [0, focal * rows / height, rows / 2],
            [0, 0, 1],
        ],
        np.float32,
    )
    return _Photo(resize_image(photo, (rows, columns)), intrinsics)


def _framed(
    photo: _Photo, size: tuple[int, int], lens: Float[ndarray, "3 3"]
) -> Float[ndarray, "3 3"]:
    """The lens of a frame of a stored view's size that sees as much from left to right."""
    height, width = size
    focal = photo.intrinsics[0, 0] * width / photo.image.shape[1]
    focal_y = focal * lens[1, 1] / lens[0, 0]
    return np.array([[focal, 0, width / 2], [0, focal_y, height / 2], [0, 0, 1]], np.float32)


def _shared_view(entries: EntryBank, located: LocatedCamera, views: int) -> int:
    """The stored view that saw most of the entries that agree."""
    bits = entries.views[located.entry]
    saw = jax.vmap(lambda view: (has_view(bits, view) & located.pose.inlier).sum())
    return int(saw(jnp.arange(views, dtype=jnp.int32)).argmax())


def _describe(
    options: argparse.Namespace,
    located: LocatedCamera,
    stereo: SpatialStereoMemory,
    view: int,
    agree: int,
    matched: int,
    photo: _Photo,
) -> str:
    """The pose and how far it is to be believed, as text."""
    place, turn = _apart(located.pose.w2c, stereo.w2c[view])
    where = " ".join(f"{x:.4g}" for x in np.asarray(camera_centers(located.pose.w2c)))
    height, width = photo.image.shape[:2]
    rows = (" ".join(f"{x:9.5f}" for x in row) for row in np.asarray(located.pose.w2c))
    return "\n".join(
        [
            f"{options.photo} in {options.folder}",
            f"  place       {where}, {place:.4g} from view {view}, turned by {turn:.4g} degrees",
            f"  matches     {agree} of {matched} agree, root mean square "
            f"{float(located.pose.residual):.2f} pixels of {width}x{height}",
            f"  spread      {np.degrees(float(located.pose.turn)):.2g} degrees, "
            f"{float(located.pose.place):.2g} units, if each match errs for itself",
            "  world to camera",
            *(f"    {row}" for row in rows),
        ]
    )


def _apart(a: Float[Array, "4 4"], b: Float[Array, "4 4"]) -> tuple[float, float]:
    """Distance between two cameras, and the angle between them in degrees."""
    poses = np.asarray(a, np.float64), np.asarray(b, np.float64)
    places = [-pose[:3, :3].T @ pose[:3, 3] for pose in poses]
    difference = poses[0][:3, :3] @ poses[1][:3, :3].T
    skew = difference - difference.T
    sine = np.linalg.norm([skew[2, 1], skew[0, 2], skew[1, 0]]) / 2
    angle = np.arctan2(sine, (np.trace(difference) - 1) / 2)
    return float(np.linalg.norm(places[0] - places[1])), float(np.degrees(angle))
