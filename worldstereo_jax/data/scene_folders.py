"""Scenes as a user has them: one picture, or one of the official folders.

single view: image.png, prompt.json ("long caption" or "prompt"), camera.json.
reconstruction: image.png, prompt.json, and per path renders/traj_*/ with render.mp4,
render_mask.mp4 and camera.json; the image stands at the world's origin.
panorama: pano_bank/images/<key>.png with pano_bank/cameras.json keyed alike; per view a folder with
start_frame.png and one folder per trajectory with render.mp4, render_mask.mp4, camera.json and
traj_caption.json ("prompt").

Images are read in whatever size they have and resized to the size asked for, without crop; the
intrinsics follow, each axis by its own factor.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.data.images import read_image, resize_image
from worldstereo_jax.data.video_io import read_mask_video, read_video
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import read_json_object
from worldstereo_jax.geometry.camera_io import (
    read_camera_json,
    read_keyed_cameras,
)
from worldstereo_jax.geometry.cameras import resize_intrinsics

_BANK = "pano_bank"
_RENDERS = "renders"
_FIRST_PATHS = ("traj_eloop", "traj_up", "traj_right", "traj_left")
_CAPTIONS = ("long caption", "prompt")
_TRAJECTORY_FILES = ("camera.json", "render.mp4", "render_mask.mp4", "traj_caption.json")
_DEFAULT_FIELD_OF_VIEW = 60.0


@dataclasses.dataclass(frozen=True)
class SingleViewScene:
    """One image, with a camera path where the folder brings one.

    Attributes:
        name: of the folder or file, without suffix.
        image: colours [h, w, 3] in [-1, 1].
        prompt: the caption, empty for a bare picture.
        w2c: world-to-camera matrices [f, 4, 4] of the path, None for a bare picture.
        intrinsics: [f, 3, 3] in pixels of `image`; of a bare picture the assumed ones, [1, 3, 3].
    """

    name: str
    image: Float[ndarray, "h w 3"]
    prompt: str
    w2c: Float[ndarray, "f 4 4"] | None
    intrinsics: Float[ndarray, "f 3 3"]


@dataclasses.dataclass(frozen=True)
class ViewBank:
    """Views of a scene that are known from the start.

    Attributes:
        names: keys of the views, sorted, for example "0000".
        images: colours [v, h, w, 3] in [-1, 1].
        w2c: world-to-camera matrices [v, 4, 4].
        intrinsics: [v, 3, 3] in pixels of `images`.
    """

    names: tuple[str, ...]
    images: Float[ndarray, "v h w 3"]
    w2c: Float[ndarray, "v 4 4"]
    intrinsics: Float[ndarray, "v 3 3"]


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One camera path of a scene, with the files of its point-cloud renders.

    Attributes:
        view: name of the view it starts from ('-' replaced by '_'); "renders" in the layout of
            one image with several paths.
        name: of its folder, for example "traj0" or "traj_eloop".
        prompt: the caption.
        start_frame: colours [h, w, 3] in [-1, 1] of the view's first frame.
        w2c: world-to-camera matrices [f, 4, 4].
        intrinsics: [f, 3, 3] in pixels of `start_frame`.
        render: file of the renders; `read_renders` reads both.
        mask: file of their hole masks.
    """

    view: str
    name: str
    prompt: str
    start_frame: Float[ndarray, "h w 3"]
    w2c: Float[ndarray, "f 4 4"]
    intrinsics: Float[ndarray, "f 3 3"]
    render: Path
    mask: Path


@dataclasses.dataclass(frozen=True)
class PanoramaScene:
    """A bank of views and the trajectories to generate, in the order in which they are generated.

    Attributes:
        name: of the folder.
        bank: the panorama's views; or the one image that several paths start from.
        trajectories: every trajectory of every valid view; later ones read what earlier ones wrote.
    """

    name: str
    bank: ViewBank
    trajectories: tuple[Trajectory, ...]


def read_scene(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None
) -> SingleViewScene | PanoramaScene:
    """A picture or scene folder, everything at `size` = (height, width).

    Folders are of one image and one path (single view: image.png, prompt.json, camera.json), of one
    image and several paths with their renders (reconstruction: image.png, prompt.json,
    renders/traj_*/), or of a panorama (pano_bank/, <view>/<trajectory>/).

    Without `size` images keep their own. Raises InputError in one sentence naming the file, and the
    field where there is one, for whatever is missing or malformed.
    """
    path = Path(path)
    if path.is_file():
        image, own = _image(path, size)
        # Of the picture as it was taken: its pixels are square, those of a resized one need not be.
        assumed = _scale(default_intrinsics(*own)[None], own, (image.shape[0], image.shape[1]))
        return SingleViewScene(path.stem, image, "", None, assumed)
    if not path.is_dir():
        raise InputError(f"{path} does not exist: a picture or a scene folder was expected.")
    if (path / _BANK).is_dir():
        return _read_panorama(path, size)
    if (path / _RENDERS).is_dir():
        return _read_reconstruction(path, size)
    if any((path / name).exists() for name in ("image.png", "camera.json", "prompt.json")):
        return _read_single_view(path, size)
    raise InputError(
        f"{path} is no scene folder: it holds neither image.png (single view), "
        f"{_RENDERS}/ (reconstruction) nor {_BANK}/ (panorama)."
    )


def read_renders(
    trajectory: Trajectory,
) -> tuple[Float[ndarray, "f h w 3"], Float[ndarray, "f h w 1"]]:
    """Renders in [-1, 1] and masks (1 = hole) of a trajectory, at the size of its start frame.

    The first render is replaced by the start frame, as in the official code; its mask stays as
    read but for reconstruct*/traj1 and paths of one image, where it is 0: no hole. Masks are
    binarised after resizing.
    Raises InputError when the files cannot be read, or hold another number of frames than the
    trajectory has cameras.
    """
    size = (trajectory.start_frame.shape[0], trajectory.start_frame.shape[1])
    frames = read_video(trajectory.render)
    masks = read_mask_video(trajectory.mask)
    for path, clip in ((trajectory.render, frames), (trajectory.mask, masks)):
        if len(clip) != len(trajectory.w2c):
            raise InputError(
                f"{path} holds {len(clip)} frames, but its camera.json "
                f"{len(trajectory.w2c)} cameras."
            )
    renders = np.stack([resize_image(frame, size) for frame in frames])
    renders[0] = trajectory.start_frame
    rgb_masks = (resize_image(np.repeat(mask, 3, axis=-1), size) for mask in masks)
    resized = np.stack([(mask[..., :1] > 0.5).astype(np.float32) for mask in rgb_masks])
    if continues_a_clip(trajectory.view, trajectory.name) or trajectory.view == _RENDERS:
        resized[0] = 0
    return renders, resized


def default_intrinsics(height: int, width: int) -> Float[ndarray, "3 3"]:
    """Intrinsics assumed for a picture without any: its longer side spans 60 degrees."""
    focal = max(height, width) / (2 * np.tan(np.radians(_DEFAULT_FIELD_OF_VIEW) / 2))
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)


def read_caption(path: str | os.PathLike[str]) -> str:
    """The "long caption", or else the "prompt", of a caption file.

    Raises InputError when the file holds neither, or something else than text.
    """
    content = read_json_object(path)
    for name in _CAPTIONS:
        if name in content:
            if not isinstance(content[name], str):
                raise InputError(f"{path}: '{name}' must be text.")
            return content[name]
    raise InputError(f"{path} has no field 'long caption' or 'prompt'.")


def _image(
    path: Path, size: tuple[int, int] | None
) -> tuple[Float[ndarray, "h w 3"], tuple[int, int]]:
    """The image at `size`, and the (height, width) it had."""
    image = read_image(path)
    own = (image.shape[0], image.shape[1])
    return image if size is None else resize_image(image, size), own


def _scale(
    intrinsics: Float[ndarray, "v 3 3"], own: tuple[int, int], size: tuple[int, int]
) -> Float[ndarray, "v 3 3"]:
    return np.asarray(resize_intrinsics(intrinsics, own, size))


def _read_single_view(path: Path, size: tuple[int, int] | None) -> SingleViewScene:
    image, own = _image(path / "image.png", size)
    prompt = read_caption(path / "prompt.json")
    w2c, intrinsics, camera_size = read_camera_json(path / "camera.json")
    intrinsics = _scale(intrinsics, camera_size or own, (image.shape[0], image.shape[1]))
    return SingleViewScene(path.name, image, prompt, w2c, intrinsics)


def _read_panorama(path: Path, size: tuple[int, int] | None) -> PanoramaScene:
    bank = _read_bank(path / _BANK, size)
    trajectories = [
        _read_trajectory(folder, size)
        for view in _view_folders(path)
        for folder in sorted(view.iterdir())
        if _is_trajectory(folder)
    ]
    if not trajectories:
        raise InputError(
            f"{path} holds no trajectory: <view>/<trajectory>/camera.json was expected."
        )
    return PanoramaScene(path.name, bank, tuple(sorted(trajectories, key=_generation_order)))


def _read_bank(path: Path, size: tuple[int, int] | None) -> ViewBank:
    names, w2c, intrinsics = read_keyed_cameras(path / "cameras.json")
    images, scaled = [], []
    for i, name in enumerate(names):
        file = path / "images" / f"{name}.png"
        image, own = _image(file, size)
        if images and image.shape != images[0].shape:
            raise InputError(
                f"{file} is {own[0]} x {own[1]} (height x width), but the bank's first image is "
                f"{images[0].shape[0]} x {images[0].shape[1]}."
            )
        images.append(image)
        scaled.append(_scale(intrinsics[i : i + 1], own, (image.shape[0], image.shape[1]))[0])
    return ViewBank(tuple(names), np.stack(images), w2c, np.stack(scaled))


def _view_folders(path: Path) -> list[Path]:
    """Folders that hold trajectories and are not marked as invalid."""
    views = []
    for folder in sorted(path.iterdir()):
        if folder.name == _BANK or not folder.is_dir():
            continue
        if not any(_is_trajectory(child) for child in folder.iterdir()):
            continue
        analysis = folder / "valid_analysis.json"
        if not analysis.exists() or read_json_object(analysis).get("valid") == "yes":
            views.append(folder)
    return views


def _is_trajectory(folder: Path) -> bool:
    """Whether the folder means to be a trajectory: whatever it lacks is then named, not skipped."""
    return any((folder / name).exists() for name in _TRAJECTORY_FILES)


def continues_a_clip(view: str, name: str) -> bool:
    """Whether a trajectory starts from the last frame of its view's traj0."""
    return view.startswith("reconstruct") and name == "traj1"


def _read_trajectory(folder: Path, size: tuple[int, int] | None) -> Trajectory:
    view, caption = folder.parent, folder / "traj_caption.json"
    return _trajectory(folder, view.name.replace("-", "_"), view / "start_frame.png", caption, size)


def _trajectory(
    folder: Path, view: str, start: Path, caption: Path, size: tuple[int, int] | None
) -> Trajectory:
    """The trajectory of a folder, from the image and with the caption of two files."""
    start_frame, own = _image(start, size)
    w2c, intrinsics, camera_size = read_camera_json(folder / "camera.json")
    for name in ("render.mp4", "render_mask.mp4"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} does not exist.")
    return Trajectory(
        view=view,
        name=folder.name,
        prompt=read_caption(caption),
        start_frame=start_frame,
        w2c=w2c,
        intrinsics=_scale(
            intrinsics, camera_size or own, (start_frame.shape[0], start_frame.shape[1])
        ),
        render=folder / "render.mp4",
        mask=folder / "render_mask.mp4",
    )


def _read_reconstruction(path: Path, size: tuple[int, int] | None) -> PanoramaScene:
    """One image and several paths from it; the image stands at the world's origin."""
    folders = [folder for folder in sorted((path / _RENDERS).iterdir()) if _is_trajectory(folder)]
    if not folders:
        raise InputError(f"{path} holds no path: {_RENDERS}/traj_*/camera.json was expected.")
    rank = {name: i for i, name in enumerate(_FIRST_PATHS)}
    folders.sort(key=lambda folder: (rank.get(folder.name, len(rank)), folder.name))
    image, caption = path / "image.png", path / "prompt.json"
    trajectories = [_trajectory(folder, _RENDERS, image, caption, size) for folder in folders]
    first = trajectories[0]
    bank = ViewBank(
        names=("0000",),
        images=first.start_frame[None],
        w2c=np.eye(4, dtype=np.float32)[None],
        # Officially those of traj_eloop, the first in order.
        intrinsics=first.intrinsics[:1],
    )
    return PanoramaScene(path.name, bank, tuple(trajectories))


# The official order: what a later group shows depends on what the earlier ones wrote to the bank.
_ORDER: tuple[Callable[[str, str], bool], ...] = (
    lambda view, name: view.startswith("view") and name == "traj2",
    lambda view, name: view.startswith("view") and name == "traj0",
    lambda view, name: view.startswith("view") and name == "traj1",
    lambda view, name: view.startswith("target"),
    lambda view, name: view.startswith("reconstruct") and name == "traj0",
    lambda view, name: view.startswith("wonder"),
    continues_a_clip,
)


def _generation_order(trajectory: Trajectory) -> tuple[int, str, str]:
    """Rank of the trajectory's group (unknown ones come last), then names."""
    for rank, belongs in enumerate(_ORDER):
        if belongs(trajectory.view, trajectory.name):
            return rank, trajectory.view, trajectory.name
    return len(_ORDER), trajectory.view, trajectory.name
