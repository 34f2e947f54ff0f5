"""What a command line names as its input, read at the size the small model works at."""

from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.data.depth_io import read_depth, resize_depth
from worldstereo_jax.data.scene_folders import PanoramaScene, SingleViewScene, read_scene
from worldstereo_jax.errors import InputError

AnyScene = SingleViewScene | PanoramaScene

_LEAST_SIDE = 16
# Proportions beyond this many times those of the nearest size are another picture when squeezed.
_MOST_SQUEEZED = 2.0
# Sizes (height, width) the small model runs at: 60 tokens or a few more, as it was trained with.
SIZES = ((96, 160), (112, 144), (128, 128), (144, 112), (160, 96))


def read_working_scene(path: Path) -> tuple[AnyScene, tuple[int, int]]:
    """The scene with its images at the nearest working size, and the (height, width) they had.

    Raises:
        InputError: naming the file or field that is missing or malformed.
    """
    own_size = image_size(read_scene(path))
    _check_working(path, own_size)
    return read_scene(path, nearest_size(*own_size)), own_size


def _check_working(path: Path, own_size: tuple[int, int]) -> None:
    height, width = own_size
    if min(height, width) < _LEAST_SIDE:
        raise InputError(
            f"{path}: its image is {width}x{height} pixels, and must be at least {_LEAST_SIDE} "
            "wide and high"
        )
    size = nearest_size(height, width)
    squeezed = (height / width) / (size[0] / size[1])
    if max(squeezed, 1 / squeezed) > _MOST_SQUEEZED:
        raise InputError(
            f"{path}: its image of {width}x{height} pixels is too long for the model, which works "
            f"at {size[1]}x{size[0]}; crop it"
        )


def image_size(scene: AnyScene) -> tuple[int, int]:
    """Height and width of the scene's image, or of the first of its bank."""
    image = scene.image if isinstance(scene, SingleViewScene) else scene.bank.images[0]
    return image.shape[0], image.shape[1]


def nearest_size(height: int, width: int) -> tuple[int, int]:
    """The working size (height, width) of the nearest proportions."""
    ratio = np.log(height / width)
    return min(SIZES, key=lambda size: abs(np.log(size[0] / size[1]) - ratio))


def read_working_depth(
    path: Path, own_size: tuple[int, int], size: tuple[int, int]
) -> Float[ndarray, "h w"]:
    """A depth map that belongs to an image of `own_size`, at `size`.

    Raises:
        InputError: for a file that is no depth map, or one of another size than the image's.
    """
    depth = resize_depth(read_depth(path, own_size), size)
    if not np.any(depth > 0):
        raise InputError(f"{path} holds too few valid depths to be used at {size[0]}x{size[1]}")
    return depth


def read_scene_depth(
    path: Path, scene: AnyScene, own_size: tuple[int, int]
) -> Float[ndarray, "h w"]:
    """`read_working_depth` for a scene that was read at its working size.

    Raises:
        InputError: as there, and for a panorama of several views.
    """
    if isinstance(scene, PanoramaScene) and len(scene.bank.names) > 1:
        raise InputError("--depth is for a single image; the depth of a panorama is estimated")
    return read_working_depth(path, own_size, image_size(scene))
