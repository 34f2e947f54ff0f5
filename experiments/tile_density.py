"""How sparse a correspondence mask is in tiles, by the order of the tokens and the tile size.

    python experiments/tile_density.py [--scenes 3] [--views 8 64] [--data FOLDER]

For each scene: a target clip of 21 frames and N reference views of 30x52 tokens (480x832 images).
A target token sees the reference tokens within 1.5 token footprints of its surface point whose
normals agree (rows S14, S19); the tokens of both sides are laid out in one of four orders, and the
share of tile pairs that hold an allowed pair is counted, exactly. `cost` is that share times the
number of keys, over 8 dense views. `listed` is the share that the tile bounds of
`pallas_kernels.from_geometry` keep active on the device (Hilbert order only): never less.

Orders: raster (frame by frame, row by row), image (8x16 image tiles within each frame), frame
(frame by frame, along the 3D Hilbert curve within each), morton and hilbert (along the 3D curve
over all frames, and over all references, at once). `joint` is the pattern over [references ;
target] (dense target, references to their own frame), with the references along the curve in each
frame, or across all of them: the latter scatters a frame over all tiles.

`--data` adds a panorama folder of the official layout. It has no depth, so its bank and its first
trajectory look at a sphere of 3 m around the bank's centre: right in viewing directions, not in
parallax.

Record (2026-11-22): at 64 views one curve over all references makes tiles of 128 twelve times
sparser than raster order, 2.5 % against 30 %, and Hilbert's is hardly better than Morton's; the
bounds list 3.0 % there, 7.8 % for 5.2 % in tiles of 512x128. In the joint pattern the references
must stay together by frame (12 % active tiles at 64 views; 63 % along one curve), since every
frame sees itself densely.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from scipy.spatial import KDTree
from tqdm import tqdm

import pallas_kernels as pk
from worldstereo_jax.data.scene_folders import PanoramaScene, read_scene
from worldstereo_jax.data.scene_layouts import make_scene
from worldstereo_jax.data.scene_render import render_scene
from worldstereo_jax.data.scene_trajectories import sample_trajectory
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.geometry.cameras import camera_centers, pixel_grid, unproject

RESULTS = Path(__file__).parent / "RESULTS.md"
PLOT = Path(__file__).parent / "plots" / "tile_density.png"
ROWS, COLUMNS, FRAMES = 30, 52, 21
FOOTPRINTS, NORMAL_COS, SPHERE = 1.5, 0.5, 3.0
SQUARE = (64, 128, 256, 512, 1024)
TILES = (*((tile, tile) for tile in SQUARE), (512, 128))
DENSE_KEYS = 8 * ROWS * COLUMNS


class Tokens(NamedTuple):
    """Tokens of several views: position [n, 3] m, radius [n] m, normal [n, 3], frame [n]."""

    position: np.ndarray
    radius: np.ndarray
    normal: np.ndarray
    frame: np.ndarray


def tokens_of(depth, normal, w2c, intrinsics) -> Tokens:
    """Tokens of views [f] whose depth [f, rows, columns] is sampled at the token centres."""
    frames = depth.shape[0]
    pixels = jnp.broadcast_to(pixel_grid(ROWS, COLUMNS)[None], (frames, ROWS, COLUMNS, 2))
    position = jax.vmap(unproject)(pixels, depth, w2c, intrinsics)
    radius = FOOTPRINTS * depth / intrinsics[:, 0, 0][:, None, None]
    frame = np.repeat(np.arange(frames), ROWS * COLUMNS)
    flat = (np.asarray(x).reshape(frames * ROWS * COLUMNS, -1) for x in (position, radius, normal))
    position, radius, normal = flat
    return Tokens(position, radius[:, 0], normal, frame)


def procedural(seed: int, views: int) -> tuple[Tokens, Tokens]:
    """Target and references: a path, and views taken evenly from other paths of the scene."""
    scene = make_scene(seed, "held_out")
    paths = max(2, views // 8)
    drawn = [
        sample_trajectory(1000 * seed + i, scene, FRAMES, height=ROWS, width=COLUMNS)
        for i in range(1 + paths)
    ]
    pick = np.linspace(0, FRAMES - 1, views // paths).round().astype(int)
    bank = [(w2c[pick], k[pick]) for w2c, k in drawn[1:]]
    sides = (drawn[0], tuple(jnp.concatenate(x) for x in zip(*bank, strict=True)))
    result = []
    for w2c, k in sides:
        seen = render_scene(scene, w2c, k, height=ROWS, width=COLUMNS, supersample=1)
        result.append(tokens_of(seen.depth, seen.normal, w2c, k))
    return result[0], result[1]


def panorama(folder: Path) -> tuple[Tokens, Tokens]:
    """The first trajectory and the bank of a panorama folder, on a sphere around the bank."""
    scene = read_scene(folder)
    if not isinstance(scene, PanoramaScene):
        raise SystemExit(f"{folder} is no panorama folder")
    path = scene.trajectories[0]
    height, width = path.start_frame.shape[:2]
    scale = np.array([[COLUMNS / width], [ROWS / height], [1.0]], np.float32)
    middle = jnp.asarray(camera_centers(jnp.asarray(scene.bank.w2c)).mean(0))
    result = []
    for side in (path, scene.bank):
        w2c, k = jnp.asarray(side.w2c[:64]), jnp.asarray(side.intrinsics[:64] * scale)
        pixels = jnp.broadcast_to(pixel_grid(ROWS, COLUMNS)[None], (len(w2c), ROWS, COLUMNS, 2))
        unit = jax.vmap(unproject)(pixels, jnp.ones(pixels.shape[:3]), w2c, k)
        start = camera_centers(w2c)[:, None, None] - middle
        ray = unit - middle - start
        a, b = jnp.sum(ray * ray, -1), jnp.sum(ray * start, -1)
        c = jnp.sum(start * start, -1) - SPHERE**2
        depth = (-b + jnp.sqrt(jnp.maximum(b * b - a * c, 0.0))) / a
        normal = -(start + ray * depth[..., None]) / SPHERE
        result.append(tokens_of(depth, normal, w2c, k))
    return result[0], result[1]


def allowed_pairs(query: Tokens, key: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all allowed (query, key) pairs."""
    tree = KDTree(key.position)
    near = tree.query_ball_point(query.position, query.radius)
    count = np.fromiter((len(x) for x in near), int, len(near))
    i = np.repeat(np.arange(len(near)), count)
    j = np.concatenate([np.asarray(x, int) for x in near])
    agree = np.sum(query.normal[i] * key.normal[j], axis=-1) >= NORMAL_COS
    return i[agree], j[agree]


def geometry_of(tokens: Tokens) -> pk.TokenGeometry:
    """The same tokens as the kernels see them, batch of 1."""
    return pk.make_token_geometry(
        jnp.asarray(tokens.position)[None],
        radius=jnp.asarray(tokens.radius)[None],
        normal=jnp.asarray(tokens.normal)[None],
        frame=jnp.asarray(tokens.frame, jnp.int32)[None],
        views=int(tokens.frame.max()) + 1 + 64,
    )


def places(query: Tokens, key: Tokens) -> dict[str, tuple[np.ndarray, ...]]:
    """For each order, where every query and every key stands."""
    geometry = [geometry_of(x) for x in (query, key)]
    box = pk.bounding_box(*geometry)
    found: dict[str, tuple[np.ndarray, ...]] = {}
    found["raster"] = tuple(np.arange(len(x.position)) for x in (query, key))
    image = []
    for x in (query, key):
        row, column = np.divmod(np.arange(len(x.position)) % (ROWS * COLUMNS), COLUMNS)
        order = np.lexsort((column, row, column // 16, row // 8, x.frame))
        image.append(np.argsort(order))
    found["image"] = tuple(image)
    for name, curve, by_frame in (
        ("frame", "hilbert", True),
        ("morton", "morton", False),
        ("hilbert", "hilbert", False),
    ):
        orders = (
            pk.order_tokens(g, box=box, curve=curve, major=g.frame if by_frame else None)
            for g in geometry
        )
        found[name] = tuple(np.asarray(order.inverse)[0] for order in orders)
    return found


def tile_kinds(pairs, place, sizes, tile_q: int, tile_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Which tile pairs hold some of the token pairs, and which hold all of theirs; [nq, nk]."""
    nq, nk = (-(-size // tile) for size, tile in zip(sizes, (tile_q, tile_k), strict=True))
    tile = place[0][pairs[0]] // tile_q * nk + place[1][pairs[1]] // tile_k
    count = np.bincount(tile, minlength=nq * nk).reshape(nq, nk)
    rows, columns = (
        np.minimum(tile, size - tile * np.arange(n))
        for tile, size, n in zip((tile_q, tile_k), sizes, (nq, nk), strict=True)
    )
    full = count == rows[:, None] * columns[None]
    return (count > 0) & ~full, full


def share(pairs, place, sizes, tile_q: int, tile_k: int) -> float:
    """Share of tile pairs that hold one of the token pairs."""
    partial, full = tile_kinds(pairs, place, sizes, tile_q, tile_k)
    return float((partial | full).mean())


def joint_share(pairs, place, query: Tokens, key: Tokens, tile: int) -> float:
    """Share of active tile pairs of the joint pattern over [references ; target]."""
    references, target = len(key.position), len(query.position)
    n = -(-(references + target) // tile)
    active = np.zeros((n, n), bool)
    i, j = (references + place[0][pairs[0]]) // tile, place[1][pairs[1]] // tile
    active[i, j] = active[j, i] = True
    active[references // tile :, references // tile :] = True
    for frame in range(int(key.frame.max()) + 1):
        own = np.unique(place[1][key.frame == frame] // tile)
        active[np.ix_(own, own)] = True
    return float(active.mean())


def joint_mask(query: Tokens, key: Tokens, tile_q: int, tile_k: int) -> pk.BlockMask:
    """The joint pattern over [references ; target] with exact lists, as the model has it.

    The target's tokens stand along the Hilbert curve, the references' by view and then along it.
    """
    target, reference = geometry_of(query), geometry_of(key)
    box = pk.bounding_box(reference, target)
    by_view = pk.order_tokens(reference, box=box, major=reference.frame)
    return pk.refine(
        pk.joint_correspondence(
            pk.order_geometry(reference, by_view),
            pk.order_geometry(target, pk.order_tokens(target, box=box)),
            rule=pk.CorrespondenceRule(normal_cos=NORMAL_COS),
            tile_q=tile_q,
            tile_k=tile_k,
        )
    )


def listed_share(query: Tokens, key: Tokens, tile_q: int, tile_k: int) -> float:
    """Share of tile pairs that the bounds keep, in Hilbert order."""
    sides = [geometry_of(x) for x in (query, key)]
    box = pk.bounding_box(*sides)
    ordered = [pk.order_geometry(g, pk.order_tokens(g, box=box)) for g in sides]
    rule = pk.CorrespondenceRule(normal_cos=NORMAL_COS)
    mask = pk.from_geometry(*ordered, rule=rule, tile_q=tile_q, tile_k=tile_k)
    return float(mask.density()[0, 0])


def report(name: str, scenes: list[tuple[Tokens, Tokens]]) -> tuple[Table, dict[str, list]]:
    """The table of one kind of scene, and by order the shares of square tiles; means of scenes."""
    rows: dict[tuple[int, int], dict[str, list[float]]] = {tile: {} for tile in TILES}
    single: list[float] = []
    joint: dict[str, list[float]] = {}
    for query, key in tqdm(scenes, desc=name, leave=False):
        pairs, sizes = allowed_pairs(query, key), (len(query.position), len(key.position))
        single.append(len(pairs[0]) / (sizes[0] * sizes[1]))
        orders = places(query, key)
        for tile in TILES:
            for order, place in orders.items():
                rows[tile].setdefault(order, []).append(share(pairs, place, sizes, *tile))
            rows[tile].setdefault("listed", []).append(listed_share(query, key, *tile))
        for order in ("frame", "hilbert"):
            place = (orders["hilbert"][0], orders[order][1])
            joint.setdefault(order, []).append(joint_share(pairs, place, query, key, 128))
    keys = float(np.mean([len(key.position) for _, key in scenes]))
    cells, curves = [], {}
    for (tile_q, tile_k), found in rows.items():
        mean = {order: float(np.mean(x)) for order, x in found.items()}
        if tile_q == tile_k:
            for order, value in mean.items():
                curves.setdefault(order, []).append(value)
        shares = (f"{100 * x:.1f} %" for x in mean.values())
        cost = mean["hilbert"] * keys / DENSE_KEYS
        cells.append((f"{tile_q}x{tile_k}", *shares, f"{cost:.2f}"))
    ends = ", ".join(f"references by {k}: {100 * np.mean(x):.1f} %" for k, x in joint.items())
    columns = ("tile", "raster", "image", "frame", "morton", "hilbert", "listed", "cost")
    caption = (
        f"{name}: {len(scenes)} scenes, single pairs {100 * np.mean(single):.2f} %; joint pattern "
        f"in tiles of 128, {ends}."
    )
    return Table(columns, cells, caption), curves


def plot(found: dict[str, dict[str, list]]) -> None:
    """Share of active tiles by tile size, a panel for each kind of scene."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    size = (3.4 * len(found), 3.2)
    figure, panels = plt.subplots(
        1, len(found), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (name, curves) in zip(panels[0], found.items(), strict=True):
        for order, shares in curves.items():
            style = ":" if order == "listed" else "-"
            panel.plot(SQUARE, shares, style, marker=".", label=order)
        panel.set(xscale="log", yscale="log", xlabel="tile", title=name)
        panel.set_xticks(SQUARE, [str(tile) for tile in SQUARE])
        panel.minorticks_off()
    panels[0, 0].set_ylabel("active tiles")
    panels[0, 0].legend(fontsize=7)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    """Print the tables, and write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=int, default=3, help="procedural scenes")
    parser.add_argument("--views", type=int, nargs="+", default=[8, 64], help="reference views")
    parser.add_argument("--data", type=Path, help="panorama folder to add")
    options = parser.parse_args()
    tables, curves = [], {}
    for views in options.views:
        scenes = [procedural(seed, views) for seed in tqdm(range(options.scenes), leave=False)]
        table, curves[f"{views} views"] = report(f"procedural, {views} views", scenes)
        tables.append(table)
    if options.data is not None:
        table, curves["panorama"] = report("panorama, its bank", [panorama(options.data)])
        tables.append(table)
    plot(curves)
    for table in tables:
        print(f"\n{table.markdown()}")
    views = " ".join(str(x) for x in options.views)
    command = f"python experiments/tile_density.py --scenes {options.scenes} --views {views}"
    command += "" if options.data is None else " --data PANORAMA"
    parts = [*tables, f"![active tiles by tile size](plots/{PLOT.name})"]
    write_section(RESULTS, "Tile density by the order of tokens", parts, command=command)


if __name__ == "__main__":
    main()
