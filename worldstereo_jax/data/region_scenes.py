"""Scenes for what the memory must preserve: one wall with a panel for each (rows S21 to S24).

A weave (texture), bumps (relief, lit from the side), a glossy panel whose highlight wanders with
the camera, and a mirror; before them a card of wood, whose silhouette and whose shadow on the wall
are edges of depth and of light. Everything is a formula, cast ray by ray in numpy, so the truth of
any view is exact: colour, depth and which pixel shows what.

World frame: metres, x right, y down, z forward; the wall is z = 4, cameras stand near the origin.
"""

import dataclasses

import numpy as np

from worldstereo_jax.array_types import Bool, Float, Int, ndarray
from worldstereo_jax.errors import InputError

REGIONS = ("wall", "weave", "relief", "gloss", "mirror", "card")
"""What a pixel may show, by number."""
WALL_DEPTH = 4.0
_PANELS = ((-2.2, -1.15), (-1.05, 0.0), (0.1, 1.15), (1.25, 2.2))  # x of weave .. mirror
_PANEL_HEIGHT = 0.9  # |y| of all panels
_BUMP = 0.05  # height of the relief, metres
_AMBIENT = 0.35


@dataclasses.dataclass(frozen=True)
class RegionScene:
    """Numbers of one scene, drawn by `make_region_scene`.

    threads: of the weave, per metre. bumps [k, 4]: x, y, radius, height of each, metres. card: low
    and high corner (x, y) and depth, metres. lamp [3]. tint [6, 3]: mean colours of the regions in
    [0, 1]. phase [4]: of the procedural textures. sharpness: exponent of the highlight.
    """

    threads: float
    bumps: Float[ndarray, "k 4"]
    card: tuple[float, float, float, float, float]
    lamp: Float[ndarray, "3"]
    tint: Float[ndarray, "6 3"]
    phase: Float[ndarray, "4"]
    sharpness: float


@dataclasses.dataclass(frozen=True)
class RegionFrames:
    """Rendered views with their truth.

    image [f, h, w, 3] in [-1, 1], anti-aliased. depth [f, h, w]: camera z at pixel centres, metres.
    region [f, h, w]: index into `REGIONS`. silhouette [f, h, w]: within two pixels of the card's
    outline. shadow_edge [f, h, w]: within two pixels of the border of its shadow on the wall.
    """

    image: Float[ndarray, "f h w 3"]
    depth: Float[ndarray, "f h w"]
    region: Int[ndarray, "f h w"]
    silhouette: Bool[ndarray, "f h w"]
    shadow_edge: Bool[ndarray, "f h w"]

    def masks(self, frame: int) -> dict[str, Bool[ndarray, "h w"]]:
        """The regions of one frame by name, with the two kinds of edges; [h, w] each."""
        found = {name: self.region[frame] == i for i, name in enumerate(REGIONS)}
        found["silhouette"] = self.silhouette[frame]
        found["shadow edge"] = self.shadow_edge[frame]
        return found


def make_region_scene(seed: int) -> RegionScene:
    """A scene; the same seed gives the same numbers. Raises InputError for a negative seed."""
    if seed < 0:
        raise InputError(f"seed {seed} is negative; scenes are numbered from 0")
    rng = np.random.default_rng([7, seed])
    low, high = _PANELS[1]
    bumps = np.stack(
        [
            rng.uniform(low + 0.1, high - 0.1, 14),
            rng.uniform(0.1 - _PANEL_HEIGHT, _PANEL_HEIGHT - 0.1, 14),
            rng.uniform(0.08, 0.16, 14),
            rng.uniform(-_BUMP, _BUMP, 14),
        ],
        -1,
    )
    left, top = rng.uniform(-1.3, -1.0), rng.uniform(0.0, 0.3)
    return RegionScene(
        threads=float(rng.uniform(9, 13)),
        bumps=bumps,
        card=(left, top, left + 0.45, top + 0.4, 2.8),
        lamp=np.array([rng.uniform(-1.6, -1.2), -1.8, 0.8]),
        tint=rng.uniform(0.35, 0.85, (6, 3)),
        phase=rng.uniform(0, 2 * np.pi, 4),
        sharpness=float(rng.uniform(80, 160)),
    )


def render_regions(
    scene: RegionScene,
    w2c: Float[ndarray, "f 4 4"],
    intrinsics: Float[ndarray, "f 3 3"],
    *,
    height: int,
    width: int,
    samples: int = 2,
) -> RegionFrames:
    """The scene from every camera, `samples` x `samples` rays per pixel for its colour."""
    parts = [
        _render(scene, np.linalg.inv(np.asarray(pose, float)), np.asarray(k, float), height, width)
        for pose, k in zip(w2c, intrinsics, strict=True)
    ]
    fine = [
        _cast(scene, np.linalg.inv(np.asarray(pose, float)), np.asarray(k, float), pixels)[0]
        for pose, k in zip(w2c, intrinsics, strict=True)
        for pixels in [_pixels(height, width, samples)]
    ]
    colour = np.stack(fine).reshape(len(parts), height, samples, width, samples, 3).mean((2, 4))
    depth, region, silhouette, shadow = (np.stack(x) for x in zip(*parts, strict=True))
    return RegionFrames(
        image=np.clip(2.0 * colour - 1.0, -1.0, 1.0).astype(np.float32),
        depth=depth.astype(np.float32),
        region=region.astype(np.int32),
        silhouette=silhouette,
        shadow_edge=shadow,
    )


def _pixels(height: int, width: int, samples: int) -> Float[ndarray, "h w 2"]:
    y, x = (np.mgrid[: height * samples, : width * samples] + 0.5) / samples
    return np.stack([x, y], -1)


def _render(
    scene: RegionScene, c2w: ndarray, k: ndarray, height: int, width: int
) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Depth, region, and both kinds of edges at pixel centres."""
    _, depth, region, lit = _cast(scene, c2w, k, _pixels(height, width, 1))
    on_card = region == REGIONS.index("card")
    outline = _near_change(on_card)
    shadow = _near_change(lit) & ~_near_change(on_card, reach=3)
    return depth, region, outline, shadow & ~on_card


def _near_change(flag: Bool[ndarray, "h w"], reach: int = 2) -> Bool[ndarray, "h w"]:
    """Pixels within `reach` of one whose flag differs."""
    wide = np.pad(flag, reach, mode="edge")
    h, w = flag.shape
    steps = range(2 * reach + 1)
    around = [wide[dy : dy + h, dx : dx + w] for dy in steps for dx in steps]
    return np.any(around, axis=0) & ~np.all(around, axis=0)


def _cast(
    scene: RegionScene, c2w: ndarray, k: ndarray, pixels: ndarray
) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Colour in [0, 1], camera z, region, and whether the lamp reaches it, of rays."""
    ones = np.ones_like(pixels[..., :1])
    local = np.concatenate([pixels, ones], -1) @ np.linalg.inv(k).T
    ray, eye = local @ c2w[:3, :3].T, c2w[:3, 3]
    depth = (WALL_DEPTH - eye[2]) / ray[..., 2]
    for _ in range(4):  # the relief is shallow: a fixed point is reached at once
        point = eye + depth[..., None] * ray
        depth = (WALL_DEPTH - _height(scene, point)[0] - eye[2]) / ray[..., 2]
    left, top, right, bottom, near = scene.card
    before = (near - eye[2]) / ray[..., 2]
    x, y, _ = np.moveaxis(eye + before[..., None] * ray, -1, 0)
    on_card = (before > 0) & (x > left) & (x < right) & (y > top) & (y < bottom)
    depth = np.where(on_card, before, depth)
    point = eye + depth[..., None] * ray
    region = np.where(on_card, REGIONS.index("card"), _panel(point))
    return *_shade(scene, point, eye, region, depth), region, _lit(scene, point) | on_card


def _panel(point: Float[ndarray, "*n 3"]) -> Int[ndarray, "*n"]:
    x, y = point[..., 0], point[..., 1]
    region = np.zeros(x.shape, int)
    for i, (low, high) in enumerate(_PANELS, 1):
        region[(x > low) & (x < high) & (np.abs(y) < _PANEL_HEIGHT)] = i
    return region


def _height(scene: RegionScene, point: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Relief towards the camera, metres, and its slopes along x and y."""
    x, y, radius, high = scene.bumps.T
    found = np.zeros((3, *point.shape[:-1]))
    # Nothing is left of the bumps beyond this.
    low, top = _PANELS[1][0] - 0.4, _PANELS[1][1] + 0.4
    near = (point[..., 0] > low) & (point[..., 0] < top) & (np.abs(point[..., 1]) < 1.4)
    dx, dy = point[near][:, :1] - x, point[near][:, 1:2] - y
    bump = high * np.exp(-0.5 * (dx**2 + dy**2) / (0.5 * radius) ** 2)
    slope = -bump / (0.5 * radius) ** 2
    found[:, near] = bump.sum(-1), (slope * dx).sum(-1), (slope * dy).sum(-1)
    return found[0], found[1], found[2]


def _lit(scene: RegionScene, point: ndarray) -> Bool[ndarray, "*n"]:
    """Whether the line to the lamp passes the card by."""
    left, top, right, bottom, near = scene.card
    share = (point[..., 2] - near) / (point[..., 2] - scene.lamp[2])
    at = point + share[..., None] * (scene.lamp - point)
    x, y = at[..., 0], at[..., 1]
    blocked = (share > 1e-6) & (x > left) & (x < right) & (y > top) & (y < bottom)
    return ~blocked


def _shade(
    scene: RegionScene, point: ndarray, eye: ndarray, region: ndarray, depth: ndarray
) -> tuple[ndarray, ndarray]:
    """Colour in [0, 1], and the depth passed on."""
    _, slope_x, slope_y = _height(scene, point)
    flat = region == REGIONS.index("card")
    normal = np.stack(
        [
            np.where(flat, 0.0, -slope_x),
            np.where(flat, 0.0, -slope_y),
            -np.ones_like(slope_x),
        ],
        -1,
    )
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    to_lamp = scene.lamp - point
    to_lamp = to_lamp / np.linalg.norm(to_lamp, axis=-1, keepdims=True)
    to_eye = eye - point
    to_eye = to_eye / np.linalg.norm(to_eye, axis=-1, keepdims=True)
    lamp = np.maximum((normal * to_lamp).sum(-1), 0) * _lit(scene, point)
    colour = scene.tint[region] * _texture(scene, point, region)[..., None]
    colour = colour * (_AMBIENT + (1 - _AMBIENT) * lamp)[..., None]
    half = to_lamp + to_eye
    half = half / np.linalg.norm(half, axis=-1, keepdims=True)
    # A broad highlight, somewhere on the panel for every camera: the lamp's image in its lacquer.
    middle = np.array([sum(_PANELS[2]) / 2, 0.0, WALL_DEPTH])
    bent = _unit(scene.lamp - middle) + _unit(-middle)
    glint = np.clip((half * _tilted(normal, _unit(bent))).sum(-1), 0, 1) ** scene.sharpness
    colour = colour + np.where(region == 3, 0.6 * glint, 0.0)[..., None]
    mirrored = to_eye - 2 * (to_eye * normal).sum(-1, keepdims=True) * normal
    room = 0.5 + 0.4 * np.sin(9 * mirrored + scene.phase[:3])
    return np.clip(np.where((region == 4)[..., None], room, colour), 0, 1), depth


def _unit(vector: Float[ndarray, "3"]) -> Float[ndarray, "3"]:
    return vector / np.linalg.norm(vector)


def _tilted(normal: Float[ndarray, "*n 3"], towards: Float[ndarray, "3"]) -> Float[ndarray, "*n 3"]:
    """Normals as of a panel leaning so that its middle shows the lamp to a camera at the origin."""
    lean = normal + towards - np.array([0.0, 0.0, -1.0])
    return lean / np.linalg.norm(lean, axis=-1, keepdims=True)


def _texture(scene: RegionScene, point: ndarray, region: ndarray) -> Float[ndarray, "*n"]:
    """Brightness of the procedural textures around 1."""
    x, y = point[..., 0], point[..., 1]
    a, b, c, d = scene.phase
    u, v = 2 * np.pi * scene.threads * x, 2 * np.pi * scene.threads * y
    # Threads over and under each other: which one is on top alternates like a chess board.
    over = np.sin(0.5 * u + a) * np.sin(0.5 * v + b) > 0
    weave = np.where(over, 0.75 + 0.35 * np.abs(np.sin(u)), 0.55 + 0.35 * np.abs(np.sin(v)))
    rings = 0.8 + 0.3 * np.sin(40 * np.hypot(x + 1.5 + 0.1 * np.sin(5 * y + c), 0.3 * y))
    paint = 0.9 + 0.12 * np.sin(7 * x + c) * np.sin(6 * y + d) + 0.06 * np.sin(23 * x + 17 * y)
    return np.select([region == 1, region == 5], [weave, rings], paint)
