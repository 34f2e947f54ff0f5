"""Random rooms: where things stand and what they show, from one seed."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.data.scene_types import (
    MAX_BOXES,
    MAX_CYLINDERS,
    MAX_SPHERES,
    PRIMITIVES,
    TEXTURES_PER_SCENE,
    Scene,
)
from worldstereo_jax.data.textures import (
    HELD_OUT_PHOTOGRAPHS,
    TRAIN_PHOTOGRAPHS,
    pack_texture,
    sample_texture,
)
from worldstereo_jax.errors import InputError

PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": TRAIN_PHOTOGRAPHS,
    "held_out": HELD_OUT_PHOTOGRAPHS,
}
_SPLIT_STREAM = {"train": 0, "held_out": 1}
"""Enters the random stream beside the seed, so that no layout occurs in both splits."""


@dataclasses.dataclass
class _Builder:
    """Primitives collected so far, as plain lists; `taken` holds discs (x, z, radius) in use."""

    rng: np.random.Generator
    half: np.ndarray
    camera: np.ndarray
    heading: float
    boxes: list[tuple[np.ndarray, np.ndarray, float, np.ndarray | None]] = dataclasses.field(
        default_factory=list
    )
    spheres: list[tuple[np.ndarray, float]] = dataclasses.field(default_factory=list)
    cylinders: list[tuple[np.ndarray, float, float]] = dataclasses.field(default_factory=list)
    taken: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)

    def place(self, radius: float, near: float, far: float, spread: float) -> np.ndarray | None:
        """A free spot (x, z) on the floor in front of the camera, or None when it is crowded."""
        for _ in range(24):
            distance = self.rng.uniform(near, far)
            angle = self.heading + self.rng.uniform(-spread, spread)
            spot = self.camera[[0, 2]] + distance * np.array([np.sin(angle), np.cos(angle)])
            if np.any(np.abs(spot) > self.half[[0, 2]] - 0.7 * radius):
                continue
            if all(np.hypot(*(spot - (x, z))) > radius + r for x, z, r in self.taken):
                self.taken.append((float(spot[0]), float(spot[1]), radius))
                return spot
        return None

    def add_box(self, center, half, yaw: float, uv_center=None) -> None:
        if len(self.boxes) < MAX_BOXES:
            self.boxes.append((np.asarray(center), np.asarray(half), yaw, uv_center))

    def furniture(self) -> None:
        """Boxes of the sizes of crates, tables and cupboards, some with a smaller one on top."""
        rng = self.rng
        for _ in range(rng.integers(3, 8)):
            half = np.array([rng.uniform(0.2, 0.7), rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.6)])
            spot = self.place(float(np.hypot(half[0], half[2])), 2.0, 6.5, 0.75)
            if spot is None:
                continue
            yaw = rng.uniform(-np.pi, np.pi)
            self.add_box([spot[0], -half[1], spot[1]], half, yaw)
            top = -2 * half[1]
            kind = rng.random()
            if kind < 0.3:
                small = half * rng.uniform(0.4, 0.7, 3)
                self.add_box(
                    [spot[0], top - small[1], spot[1]], small, yaw + rng.uniform(-0.6, 0.6)
                )
            elif kind < 0.6 and len(self.spheres) < MAX_SPHERES:
                radius = float(rng.uniform(0.5, 0.95) * min(half[0], half[2]))
                self.spheres.append((np.array([spot[0], top - radius, spot[1]]), radius))

    def round_things(self) -> None:
        """Balls on the floor, lamps under the ceiling, upright drums and columns."""
        rng = self.rng
        for _ in range(rng.integers(0, 3)):
            radius = float(rng.uniform(0.2, 0.5))
            spot = self.place(radius, 1.8, 5.5, 0.65)
            if spot is not None and len(self.spheres) < MAX_SPHERES:
                self.spheres.append((np.array([spot[0], -radius, spot[1]]), radius))
        if rng.random() < 0.4 and len(self.spheres) < MAX_SPHERES:
            radius = float(rng.uniform(0.15, 0.3))
            center = np.array(
                [
                    rng.uniform(-0.5, 0.5) * self.half[0],
                    -2 * self.half[1] + radius + rng.uniform(0.1, 0.5),
                    rng.uniform(-0.2, 0.7) * self.half[2],
                ]
            )
            self.spheres.append((center, radius))
        for _ in range(rng.integers(0, MAX_CYLINDERS + 1)):
            radius = float(rng.uniform(0.12, 0.4))
            spot = self.place(radius, 1.8, 6.0, 0.7)
            if spot is not None:
                column = rng.random() < 0.3
                high = self.half[1] if column else float(rng.uniform(0.2, 0.7))
                self.cylinders.append((np.array([spot[0], -high, spot[1]]), radius, high))

    def relief(self) -> None:
        """A panel of blocks that step out by different depths, one picture across all of them."""
        rng = self.rng
        columns, rows = (4, 3) if rng.random() < 0.5 else (3, 3)
        cell = np.array([rng.uniform(0.18, 0.35), rng.uniform(0.18, 0.32)])
        reach = 0.5 * columns * 2 * cell[0]
        middle = np.array(
            [
                rng.uniform(-1, 1) * max(self.half[0] - reach - 0.2, 0.0),
                -rng.uniform(rows * cell[1], max(2 * self.half[1] - rows * cell[1], 1.0)),
                self.half[2],
            ]
        )
        yaw = 0.0
        if rng.random() < 0.5:
            spot = self.place(reach, 2.6, 5.5, 0.5)
            if spot is not None:
                yaw = self.heading + rng.uniform(-0.7, 0.7)
                middle = np.array([spot[0], -rows * cell[1], spot[1]])
        right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
        for i in range(columns):
            for j in range(rows):
                out = rng.uniform(0.05, 0.4)
                across = (2 * i + 1 - columns) * cell[0]
                up = (2 * j + 1 - rows) * cell[1]
                center = middle + right * across + np.array([0.0, up, 0.0])
                self.add_box(center, [cell[0], cell[1], out], yaw, np.array([across, up]))

    def occluders(self) -> None:
        """Thin pillars and free-standing screens between the camera and the room's end."""
        rng = self.rng
        for _ in range(rng.integers(1, 4)):
            pillar = rng.random() < 0.6
            width = rng.uniform(0.06, 0.16) if pillar else rng.uniform(0.25, 0.5)
            angle = rng.choice([-1, 1]) * rng.uniform(0.12, 0.55)
            distance = rng.uniform(1.6, 3.2)
            heading = self.heading + angle
            spot = self.camera[[0, 2]] + distance * np.array([np.sin(heading), np.cos(heading)])
            if np.any(np.abs(spot) > self.half[[0, 2]] - width):
                continue
            if any(np.hypot(*(spot - (x, z))) < width + r for x, z, r in self.taken):
                continue
            self.taken.append((float(spot[0]), float(spot[1]), float(width)))
            high = self.half[1] if pillar else rng.uniform(0.5, 0.95)
            thick = width if pillar else 0.03
            yaw = rng.uniform(-np.pi, np.pi) if pillar else heading + rng.uniform(-0.5, 0.5)
            self.add_box([spot[0], -high, spot[1]], [width, high, thick], yaw)


def _surfaces(rng: np.random.Generator, builder: _Builder) -> tuple[np.ndarray, np.ndarray]:
    """Which texture every face shows, and at what scale and offset."""
    texture = np.zeros((PRIMITIVES, 6), np.int32)
    uv = np.zeros((PRIMITIVES, 6, 3), np.float32)
    uv[:, :, 1:] = rng.uniform(0, 512, (PRIMITIVES, 6, 2))
    # The room: four walls from two or three textures, floor and ceiling of their own.
    texture[0] = [rng.integers(0, 3), rng.integers(0, 3), 3, 4, rng.integers(0, 3), 2]
    uv[0, :, 0] = 256 / rng.uniform(2.2, 4.0, 6)
    for i in range(1, PRIMITIVES):
        texture[i] = rng.integers(5, TEXTURES_PER_SCENE)
        if rng.random() < 0.3:
            texture[i, 2:4] = rng.integers(5, TEXTURES_PER_SCENE)
        uv[i, :, 0] = 256 / rng.uniform(0.8, 2.0)
    relief = [(i + 1, box[3]) for i, box in enumerate(builder.boxes) if box[3] is not None]
    for row, _ in relief:
        first = relief[0][0]
        texture[row], uv[row] = texture[first], uv[first]
    for row, shift in relief:
        # Front faces continue one another: the offset undoes that each block has its own centre.
        uv[row, 4:, 1:] += shift * uv[row, 4:, :1]
    return texture, uv


def make_scene(seed: int, split: str) -> Scene:
    """A random textured room; the same seed and split give the same arrays bit for bit.

    `split` chooses the photographs: "held_out" scenes show only `HELD_OUT_PHOTOGRAPHS`, and
    draw from another random stream, so no layout is shared with a training scene of equal seed.
    Raises InputError for another split or a negative seed.
    """
    if split not in PHOTOGRAPHS:
        raise InputError(f"split {split!r} is unknown; expected {' or '.join(PHOTOGRAPHS)}")
    if seed < 0:
        raise InputError(f"seed {seed} is negative; scenes are numbered from 0")
    rng = np.random.default_rng([_SPLIT_STREAM[split], seed])
    half = np.array([rng.uniform(2.2, 4.0), rng.uniform(1.3, 1.8), rng.uniform(2.8, 4.6)])
    camera = np.array(
        [
            rng.uniform(-0.35, 0.35) * half[0],
            -rng.uniform(1.1, 1.7),
            -half[2] + rng.uniform(0.8, 1.4),
        ]
    )
    heading = rng.uniform(-0.3, 0.3) - 0.25 * camera[0] / half[0]
    pitch = rng.uniform(0.0, 0.16)
    builder = _Builder(rng, half, camera, heading)
    builder.taken.append((float(camera[0]), float(camera[2]), 1.1))
    if rng.random() < 0.6:
        builder.relief()
    builder.occluders()
    builder.furniture()
    builder.round_things()
    texture, uv = _surfaces(rng, builder)
    textures = np.stack(
        [pack_texture(sample_texture(rng, PHOTOGRAPHS[split])) for _ in range(TEXTURES_PER_SCENE)]
    )

    def padded(values: list, shape: tuple[int, ...]) -> jnp.ndarray:
        out = np.zeros(shape, np.float32)
        for i, value in enumerate(values):
            out[i] = value
        return jnp.asarray(out)

    # Camera axes in the room: turn about the vertical, then look down a little.
    turn = np.array(
        [
            [np.cos(heading), 0, np.sin(heading)],
            [0, 1, 0],
            [-np.sin(heading), 0, np.cos(heading)],
        ]
    )
    tilt = np.array(
        [[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]]
    )
    room_from_world = np.eye(4, dtype=np.float32)
    room_from_world[:3, :3] = turn @ tilt
    room_from_world[:3, 3] = camera
    light = [
        rng.uniform(-0.5, 0.5) * half[0],
        -2 * half[1] + rng.uniform(0.3, 0.7),
        rng.uniform(-0.6, 0.4) * half[2],
    ]
    return Scene(
        room_half=jnp.asarray(half, jnp.float32),
        box_center=padded([b[0] for b in builder.boxes], (MAX_BOXES, 3)),
        box_half=padded([b[1] for b in builder.boxes], (MAX_BOXES, 3)),
        box_yaw=padded([b[2] for b in builder.boxes], (MAX_BOXES,)),
        sphere_center=padded([s[0] for s in builder.spheres], (MAX_SPHERES, 3)),
        sphere_radius=padded([s[1] for s in builder.spheres], (MAX_SPHERES,)),
        cylinder_center=padded([c[0] for c in builder.cylinders], (MAX_CYLINDERS, 3)),
        cylinder_radius=padded([c[1] for c in builder.cylinders], (MAX_CYLINDERS,)),
        cylinder_half_height=padded([c[2] for c in builder.cylinders], (MAX_CYLINDERS,)),
        surface_texture=jnp.asarray(texture),
        surface_uv=jnp.asarray(uv),
        textures=jnp.asarray(textures),
        light=jnp.asarray(light, jnp.float32),
        room_from_world=jnp.asarray(room_from_world),
        horizontal_fov=jnp.asarray(np.deg2rad(rng.uniform(60, 80)), jnp.float32),
    )
