"""The memories in a viser scene: points, entries, stored views, what two of them have in common.

What is shown is computed in `evaluation.memory_scene`; here it is only handed on.
"""

import dataclasses
import threading
import typing
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.evaluation.memory_scene import (
    ENTRY_COLOURS,
    Pose,
    entry_cloud,
    path_segments,
    point_cloud,
    stored_frusta,
    view_scale,
)
from worldstereo_jax.evaluation.view_rays import correspondence_rays
from worldstereo_jax.geometry.rotations import WORLD_UP
from worldstereo_jax.sampling.world import WorldMemory

FIRST_CONFIDENCE = 0.3
"""Least confidence of the entries shown at first."""
VIEW_COLOUR, CLIP_COLOUR = (59, 125, 216), (120, 120, 126)
_FRUSTUM = 0.05  # size of a stored view, as a share of the depth in view
_LEFT = 0.02  # how far a browser goes before it has left a view, likewise
_LINE = 2.0  # pixels
_STEP_BACK, _STEP_UP = 0.9, 0.35  # from the first view to where a visitor begins


@dataclasses.dataclass(frozen=True)
class Viewed:
    """What is viewed.

    Attributes:
        folder: the memory's.
        memory: both memories; at least one view is stored.
        frames: of a clip of the run that wrote it.
        clip: world-to-camera matrices of the run's last clip [f, 4, 4], None where there is none.
        scene: the image or folder that the run was given, None where it is not on record.
    """

    folder: Path
    memory: WorldMemory
    frames: int
    clip: Float[ndarray, "f 4 4"] | None
    scene: str | None


class MemoryScene:
    """The memories in a viser server's scene, and the controls of what is seen of them.

    Attributes are the viser handles, which tests read; `frusta` are those of the stored views.

    Args:
        server: a `viser.ViserServer`.
        viewed: what to show.
    """

    def __init__(self, server: typing.Any, viewed: Viewed):
        self._server, self._memory = server, viewed.memory
        self._lock = threading.RLock()
        self._visited: int | None = None
        self.scale = view_scale(viewed.memory.stereo)
        self.views = stored_frusta(viewed.memory.stereo)
        server.scene.set_up_direction(WORLD_UP)
        self._place_visitors()
        self.points = self._add_points()
        self.frusta = [self._add_view(number) for number in range(len(self.views))]
        self.names = [self._add_name(number) for number in range(len(self.views))]
        self.clip = None if viewed.clip is None else self._add_clip(viewed.clip)
        self._add_controls()
        self.entries = self._draw_entries()
        self.rays = self._draw_rays()

    def go_to(self, client: typing.Any, number: int) -> None:
        """Put a browser's camera where a stored view stands; the pictures make way meanwhile."""
        view = self.views[number]
        with self._lock:
            self._visited = number
            self._show_views()
        stand_at(client, view.pose, view.fov)

    def _place_visitors(self) -> None:
        """Let browsers begin behind the first view and above it, looking where it looks."""
        first = self.views[0].pose
        w2c = np.asarray(self._memory.stereo.w2c[0])
        ahead = w2c[2, :3] * self.scale
        camera = self._server.initial_camera
        camera.position = (
            first.position - _STEP_BACK * ahead + _STEP_UP * self.scale * np.array(WORLD_UP)
        )
        camera.look_at = first.position + 0.5 * ahead
        camera.up = np.array(WORLD_UP)
        camera.near, camera.far = 0.005 * self.scale, 1000 * self.scale

    def _add_points(self) -> typing.Any:
        cloud = point_cloud(self._memory.points)
        return self._server.scene.add_point_cloud(
            "/points",
            cloud.points,
            cloud.colors,
            point_size=cloud.diameter,
            point_shape="circle",
            precision="float32",
            point_shading="flat",
            visible=False,
        )

    def _add_view(self, number: int) -> typing.Any:
        view = self.views[number]
        handle = self._server.scene.add_camera_frustum(
            f"/views/{number}",
            fov=view.fov,
            aspect=view.aspect,
            scale=_FRUSTUM * self.scale,
            thickness=_LINE,
            thickness_units="screen",
            color=VIEW_COLOUR,
            image=view.picture,
            wxyz=view.pose.wxyz,
            position=view.pose.position,
        )
        handle.on_click(lambda event: self.go_to(event.client, number))
        return handle

    def _add_name(self, number: int) -> typing.Any:
        at = self.views[number].pose.position
        return self._server.scene.add_label(f"/names/{number}", str(number), position=at)

    def _add_clip(self, w2c: Float[ndarray, "f 4 4"]) -> typing.Any:
        return self._server.scene.add_line_segments(
            "/clip",
            path_segments(w2c),
            CLIP_COLOUR,
            thickness=_LINE,
            thickness_units="screen",
        )

    def _add_controls(self) -> None:
        gui, count = self._server.gui, len(self.views)
        with gui.add_folder("Memory"):
            self.points_on = gui.add_checkbox("Global points", False)
            self.entries_on = gui.add_checkbox("Surface entries", True)
            self.colour = gui.add_dropdown("Coloured by", ENTRY_COLOURS)
            self.confidence = gui.add_slider("Confidence from", 0.0, 1.0, 0.01, FIRST_CONFIDENCE)
            self.size = gui.add_slider("Size", 0.25, 4.0, 0.25, 1.0)
            self.views_on = gui.add_checkbox("Stored views", True)
            self.clip_on = gui.add_checkbox("Last clip's path", True, visible=self.clip is not None)
        with gui.add_folder("Correspondences", expand_by_default=False):
            self.rays_on = gui.add_checkbox("Shown", False)
            numbers = tuple(str(number) for number in range(count))
            self.first = gui.add_dropdown("From view", numbers)
            self.second = gui.add_dropdown(
                "To view", numbers, initial_value=numbers[min(1, count - 1)]
            )
            self.shared = gui.add_markdown("")
            self.pair = gui.add_image(np.zeros((1, 2, 3), np.uint8))
        self.points_on.on_update(lambda _: self._set_visible(self.points, self.points_on.value))
        self.views_on.on_update(lambda _: self._ask_for_views())
        self.clip_on.on_update(lambda _: self._set_visible(self.clip, self.clip_on.value))
        for control in (self.entries_on, self.colour, self.confidence, self.size):
            control.on_update(lambda _: self._redraw_entries())
        for control in (self.rays_on, self.first, self.second):
            control.on_update(lambda _: self._redraw_rays())
        self._server.on_client_connect(self._watch)

    def _draw_entries(self) -> typing.Any:
        cloud = entry_cloud(
            self._memory.entries,
            by=self.colour.value,
            least_confidence=self.confidence.value,
        )
        # A cloud of the same name takes the place of the one before.
        return self._server.scene.add_point_cloud(
            "/entries",
            cloud.points,
            cloud.colors,
            point_size=cloud.diameter * self.size.value,
            point_shape="circle",
            precision="float32",
            point_shading="flat",
            visible=self.entries_on.value,
        )

    def _redraw_entries(self) -> None:
        with self._lock:
            self.entries = self._draw_entries()

    def _draw_rays(self) -> typing.Any:
        a, b = int(self.first.value), int(self.second.value)
        # Dropdowns count the stored views, which fill the first slots of the bank.
        rays = correspondence_rays(self._memory.stereo, a, b)
        self.shared.content = f"{100 * rays.share:.0f} % of view {a} is in view {b}"
        self.pair.image = rays.picture
        return self._server.scene.add_line_segments(
            "/correspondences",
            rays.segments,
            rays.colors,
            thickness=1.0,
            thickness_units="screen",
            visible=self.rays_on.value,
        )

    def _redraw_rays(self) -> None:
        with self._lock:
            self.rays = self._draw_rays()

    def _ask_for_views(self) -> None:
        with self._lock:
            self._visited = None
            self._show_views()

    def _show_views(self) -> None:
        with self._lock:
            for handle in (*self.frusta, *self.names):
                handle.visible = self.views_on.value and self._visited is None

    def _watch(self, client: typing.Any) -> None:
        client.camera.on_update(self._uncover)

    def _uncover(self, camera: typing.Any) -> None:
        """Show the views again once a browser has left the one that it went to."""
        with self._lock:
            if self._visited is None:
                return
            away = np.linalg.norm(camera.position - self.views[self._visited].pose.position)
            if away > _LEFT * self.scale:
                self._visited = None
                self._show_views()

    @staticmethod
    def _set_visible(handle: typing.Any, visible: bool) -> None:
        handle.visible = visible


def stand_at(client: typing.Any, pose: Pose, fov: float) -> None:
    """Put a browser's camera somewhere, with a vertical field of view in radians."""
    with client.atomic():
        client.camera.fov = fov
        # In this order: a move carries what the camera looks at along, a turn keeps its distance.
        client.camera.position = pose.position
        client.camera.wxyz = pose.wxyz
