"""The path builder in a viser scene: keys, the spline through them, its coverage, its file.

Paths and previews are computed in `evaluation`; here they are only handed on.
"""

import contextlib
import shlex
import threading
import time
import typing
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.cli.arguments import check_can_be_made
from worldstereo_jax.cli.outputs import KEYFRAMES_PER_SECOND
from worldstereo_jax.cli.viewer_memory import MemoryScene, Viewed, stand_at
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.key_path import KeyPath, snap_to_view
from worldstereo_jax.evaluation.memory_scene import Frustum, path_segments, pose_of, w2c_of
from worldstereo_jax.evaluation.path_preview import FrameFigures, frame_figures, preview_path
from worldstereo_jax.evaluation.preview_sheet import (
    frame_label,
    known_colours,
    known_pictures,
    preview_summary,
)
from worldstereo_jax.evaluation.sheet_layout import evenly_chosen
from worldstereo_jax.geometry.camera_io import write_cameras_json
from worldstereo_jax.memory.spatial_stereo import keyframes_at
from worldstereo_jax.sampling.world import Cameras

KEY_COLOUR, PATH_COLOUR = (226, 88, 62), (226, 88, 62)
NO_KEY = "none"
MOST_FRAMES = 161
MOST_PICTURES = 12
"""Frames of a preview that are shown as pictures."""
_KEY_SIZE = 0.05  # as a share of the depth in view


class PathBuilder:
    """Keys of a path, what the memories know along it, and the file that `generate` takes.

    Attributes are the present `path` and the viser handles, which tests read and set.

    Args:
        server: a `viser.ViserServer`.
        viewed: the memory.
        scene: its scene, for the views and the size of what is drawn.
        file: where the path is written unless another name is typed.
    """

    def __init__(self, server: typing.Any, viewed: Viewed, scene: MemoryScene, file: Path):
        self._server, self._viewed, self._scene = server, viewed, scene
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._written: set[Path] = set()
        self.path = KeyPath()
        self.figures: list[FrameFigures] = []
        self.line: typing.Any = None
        self.keys: list[typing.Any] = []
        self.pictures: list[typing.Any] = []
        gui, frames = server.gui, min(max(viewed.frames, 2), MOST_FRAMES)
        with gui.add_folder("Path"):
            self.add = gui.add_button("Add this camera", hint="as a key at the path's end")
            self.key = gui.add_dropdown("Key", (NO_KEY,))
            self.go = gui.add_button("Go to key")
            self.delete = gui.add_button("Delete key")
            self.frames = gui.add_slider("Frames", 2, MOST_FRAMES, 1, frames)
            self.frame = gui.add_slider("Frame", 0, frames - 1, 1, 0)
            self.play = gui.add_button("Play, or stop")
            self.preview = gui.add_button("Preview coverage")
            self.file = gui.add_text("File", str(file))
            self.export = gui.add_button("Write the path")
            self.said = gui.add_markdown("Add two cameras or more.")
        self.coverage = gui.add_folder("Coverage", visible=False)
        with self.coverage:
            self.summary = gui.add_markdown("")
        self._playing = threading.Event()
        self.add.on_click(self._add_camera)
        self.go.on_click(self._go_to_key)
        self.delete.on_click(self._delete_key)
        self.frames.on_update(self._change_length)
        self.frame.on_update(self._show_frame)
        self.play.on_click(self._play)
        self.preview.on_click(self._preview)
        self.export.on_click(self._export)

    def close(self) -> None:
        """Stop what still plays; the server is about to go."""
        self._closed.set()
        self._playing.clear()

    def cameras(self) -> Cameras:
        """The path at its present length, with the first view's intrinsics.

        Raises:
            InputError: when there are fewer than two keys.
        """
        w2c = jnp.asarray(self.path.cameras(self.frames.value))
        lens = self._viewed.memory.stereo.intrinsics[0]
        return Cameras(w2c=w2c, intrinsics=jnp.broadcast_to(lens, (len(w2c), 3, 3)))

    def command(self, file: Path) -> str:
        """The command that makes a clip of a path in a file."""
        scene = self._viewed.scene or "SCENE_OR_IMAGE"
        parts = ["worldstereo", "generate", scene, "--camera", str(file)]
        parts += ["--memory", str(self._viewed.folder), "--out", "DIR"]
        return shlex.join(parts)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Answer what a person can mend below the buttons; what else fails viser prints."""
        try:
            yield
        except (InputError, OSError) as error:
            # Nobody is told by a server that has gone.
            if not self._closed.is_set():
                self.said.content = f"**{error}**"

    def _add_camera(self, event: typing.Any) -> None:
        with self._telling(), self._lock:
            client = event.client or next(iter(self._server.get_clients().values()), None)
            if client is None:
                raise InputError("no browser shows the scene, so there is no camera to add")
            w2c = w2c_of(np.asarray(client.camera.wxyz), np.asarray(client.camera.position))
            stereo = self._viewed.memory.stereo
            held = np.asarray(stereo.w2c)[np.asarray(stereo.valid)]
            w2c, view = snap_to_view(w2c, held, self._scene.scale)
            self.path = self.path.add(w2c)
            self._draw_path()
            self.key.value = self.key.options[-1]
            at = "" if view is None else f", at stored view {view}"
            self.said.content = f"Key {len(self.path.keys) - 1} added{at}."

    def _chosen_key(self) -> int:
        if self.key.value == NO_KEY:
            raise InputError("the path has no keys yet")
        return int(self.key.value)

    def _go_to_key(self, event: typing.Any) -> None:
        with self._telling(), self._lock:
            self._look_from(event.client, self.path.keys[self._chosen_key()])

    def _delete_key(self, _: typing.Any) -> None:
        with self._telling(), self._lock:
            number = self._chosen_key()
            self.path = self.path.without(number)
            self._draw_path()
            self.said.content = f"Key {number} deleted; {len(self.path.keys)} are left."

    def _change_length(self, _: typing.Any) -> None:
        with self._telling(), self._lock:
            self.frame.value = min(self.frame.value, self.frames.value - 1)
            self.frame.max = self.frames.value - 1
            self._draw_path()

    def _show_frame(self, event: typing.Any) -> None:
        """Stand where a frame of the path is taken from, if there is one."""
        with self._telling(), self._lock:
            if len(self.path.keys) >= 2:
                path = self.path.cameras(self.frames.value)
                self._look_from(event.client, path[min(self.frame.value, len(path) - 1)])

    def _look_from(self, client: typing.Any, w2c: np.ndarray) -> None:
        """Move one browser's camera, all of them for None."""
        clients = list(self._server.get_clients().values()) if client is None else [client]
        for each in clients:
            stand_at(each, pose_of(w2c), self._scene.views[0].fov)

    def _play(self, _: typing.Any) -> None:
        if self._playing.is_set():
            self._playing.clear()
            return
        with self._telling():
            self.cameras()  # says so where there is no path
            self._playing.set()
            for number in range(self.frames.value):
                if not self._playing.is_set() or self._closed.is_set():
                    break
                self.frame.value = min(number, self.frame.max)
                time.sleep(1 / KEYFRAMES_PER_SECOND)
            self._playing.clear()

    def _preview(self, _: typing.Any) -> None:
        with self._telling():
            cameras = self.cameras()
            self.preview.disabled = True
            try:
                self._show_coverage(cameras)
            finally:
                if not self._closed.is_set():
                    self.preview.disabled = False

    def _show_coverage(self, cameras: Cameras) -> None:
        total = len(cameras.w2c)
        self.said.content = "Drawing the memories (the first time takes longer) …"

        def tell(number: int) -> None:
            # The process ends only once this thread has.
            if self._closed.is_set():
                raise InputError("the viewer has been closed")
            self.said.content = f"Frame {number + 1} of {total} …"

        preview = preview_path(self._viewed.memory, cameras, on_frame=tell)
        figures = frame_figures(preview)
        pictures = known_pictures(preview)
        with self._lock:
            if not np.array_equal(cameras.w2c, self.path.cameras(self.frames.value)):
                raise InputError("the path has changed meanwhile; preview it again")
            self._forget_coverage()
            self.figures = figures
            self._draw_line(np.asarray(cameras.w2c))
            self.summary.content = preview_summary(figures)
            with self.coverage:
                for number in evenly_chosen(total, MOST_PICTURES):
                    label = frame_label(number, figures[number])
                    image = self._server.gui.add_image(pictures[number], label=label)
                    self.pictures.append(image)
            self.coverage.visible = True
            known = np.mean([frame.known for frame in figures])
            self.said.content = f"The memories know {100 * known:.0f} % of the path."

    def _export(self, _: typing.Any) -> None:
        with self._telling(), self._lock:
            file = Path(self.file.value)
            if file.suffix.lower() != ".json":
                raise InputError(f"{file} must end in .json")
            if file.exists() and file.resolve() not in self._written:
                raise InputError(f"{file} is there already; type another name")
            check_can_be_made(file, "the path's file")
            cameras = self.cameras()
            size = self._viewed.memory.stereo.images.shape[1:3]
            write_cameras_json(file, cameras.w2c, cameras.intrinsics, (size[0], size[1]))
            self._written.add(file.resolve())
            stereo = self._viewed.memory.stereo
            at_view = keyframes_at(stereo, cameras.w2c[0], cameras.intrinsics[0]).any()
            note = (
                ""
                if at_view
                else "\n\nIt starts at no stored view; official models need one there."
            )
            self.said.content = f"{file} is written:\n\n`{self.command(file)}`{note}"

    def _draw_path(self) -> None:
        """Show keys and spline as they are now; what was known of the path before is forgotten."""
        self._forget_coverage()
        for handle in self.keys:
            handle.remove()
        self.keys = [self._add_key(number) for number in range(len(self.path.keys))]
        options = tuple(str(number) for number in range(len(self.keys))) or (NO_KEY,)
        chosen = self.key.value if self.key.value in options else options[-1]
        self.key.options = options
        self.key.value = chosen
        if self.line is not None:
            self.line.remove()
            self.line = None
        if len(self.path.keys) >= 2:
            self._draw_line(self.path.cameras(self.frames.value))

    def _draw_line(self, w2c: np.ndarray) -> None:
        """The spline, in the colours of what is known along it once that is known."""
        segments = path_segments(w2c)
        colours = np.broadcast_to(np.array(PATH_COLOUR, np.uint8), segments.shape)
        if self.figures:
            known = np.array([frame.known for frame in self.figures])
            shades = known_colours(known)
            colours = np.stack([shades[:-1], shades[1:]], axis=1)
        self.line = self._server.scene.add_line_segments(
            "/path/line", segments, colours, thickness=4.0, thickness_units="screen"
        )

    def _add_key(self, number: int) -> typing.Any:
        pose = pose_of(self.path.keys[number])
        first: Frustum = self._scene.views[0]
        handle = self._server.scene.add_camera_frustum(
            f"/path/keys/{number}",
            fov=first.fov,
            aspect=first.aspect,
            scale=_KEY_SIZE * self._scene.scale,
            thickness=3.0,
            thickness_units="screen",
            color=KEY_COLOUR,
            wxyz=pose.wxyz,
            position=pose.position,
        )
        handle.on_click(lambda _: self._choose(number))
        return handle

    def _choose(self, number: int) -> None:
        with self._lock:
            if str(number) in self.key.options:
                self.key.value = str(number)

    def _forget_coverage(self) -> None:
        self.figures = []
        for picture in self.pictures:
            picture.remove()
        self.pictures = []
        self.coverage.visible = False
