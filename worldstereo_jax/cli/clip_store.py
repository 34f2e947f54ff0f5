"""Finished clips of a scene in a folder, so that an interrupted run goes on after the last one.

A scene of many trajectories takes hours with a large model. Its clips are kept as they were made,
not as videos, so that what enters the memory again is the same to the bit.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.safetensors_io import SafetensorsFile, write_safetensors
from worldstereo_jax.sampling.official_conditions import ChosenViews, Renders, point_confidence
from worldstereo_jax.sampling.official_rollout import OfficialClip
from worldstereo_jax.sampling.world import Cameras

_RUN = "run"


class ClipStore:
    """A folder of finished clips, one safetensors file each.

    Args:
        folder: made when the first clip is written.
        run: what the clips follow from, as plain json values; clips of another run are refused.
    """

    def __init__(self, folder: Path, run: Mapping[str, object]) -> None:
        self._folder = folder
        self._run: dict[str, object] = json.loads(json.dumps(run, default=str))

    def read(self, name: str) -> OfficialClip | None:
        """The clip of a job, None when it was not made yet.

        Raises:
            InputError: for a damaged file, or the clip of another run, naming what differs.
        """
        file = self._file(name)
        if file is None:
            return None
        found = {key: jnp.asarray(file[key]) for key in file}
        return OfficialClip(
            video=found["video"],
            depth=found["depth"],
            cameras=Cameras(w2c=found["w2c"], intrinsics=found["intrinsics"]),
            guidance=Renders(found["render_image"], found["render_mask"], found["render_depth"]),
            views=ChosenViews(found["view_index"], found["view_position"], found["view_valid"]),
            # Files from before lack it; it follows from what the memory knew.
            inherited=found.get("inherited", point_confidence(found["render_depth"])),
        )

    def check(self, names: Iterable[str]) -> None:
        """Refuse clips of another run before anything is computed.

        Raises:
            InputError: as `read` does.
        """
        for name in names:
            self._file(name)

    def _file(self, name: str) -> SafetensorsFile | None:
        path = self._path(name)
        if not path.exists():
            return None
        file = SafetensorsFile(path)
        try:
            run = json.loads(file.metadata[_RUN])
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: holds no finished clip ({error})") from error
        if difference := _first_difference(run, self._run):
            name, there, here = difference
            raise InputError(
                f"{path}: was made with {name} {_said(there)}, this run has {_said(here)}; choose "
                "another --clips folder"
            )
        return file

    def write(self, name: str, clip: OfficialClip) -> None:
        """Keep a clip; its file appears whole or not at all."""
        arrays = {
            "video": clip.video,
            "depth": clip.depth,
            "w2c": clip.cameras.w2c,
            "intrinsics": clip.cameras.intrinsics,
            "render_image": clip.guidance.render_image,
            "render_mask": clip.guidance.render_mask,
            "render_depth": clip.guidance.depth,
            "view_index": clip.views.index,
            "view_position": clip.views.position,
            "view_valid": clip.views.valid,
            "inherited": clip.inherited,
        }
        tensors = {key: np.asarray(array) for key, array in arrays.items()}
        write_safetensors(self._path(name), tensors, {_RUN: json.dumps(self._run)})

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '-') or 'clip'}.safetensors"


def _first_difference(
    there: object, here: object, name: str = ""
) -> tuple[str, object, object] | None:
    """Name and both values of the first field that differs; None when nothing does."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            inside = f"{name} {key}".strip()
            found = _first_difference(there.get(key), here.get(key), inside)
            if found:
                return found
        return None
    return None if there == here else (name, there, here)


def _said(value: object) -> str:
    """A value in a sentence; of a hash its start."""
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:12]
    return "none" if value is None else repr(value)
