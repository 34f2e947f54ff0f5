"""The adaptive field and the mask it makes, drawn over a real pair and two procedural scenes.

    python -m experiments.field_plots

Writes experiments/figures/adaptive_field.png. Per scene: the fields of every second token of the
second view as ellipses on its picture; their mean radius in metres; how many tokens of the first
view each may attend to.

Expected: fields grow with distance and at depth edges, where the depth is uncertain, and stretch
along slanted floors and walls; most tokens see fewer than twenty keys (row S19).
"""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from skimage import data

from pallas_kernels import from_geometry
from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.data.scene_layouts import make_scene
from worldstereo_jax.data.scene_source import render_clip
from worldstereo_jax.data.scene_trajectories import sample_revisit
from worldstereo_jax.memory.masks import TOKEN, ViewSet, token_geometry
from worldstereo_jax.memory.spatial_stereo import depth_confidence
from worldstereo_jax.memory.warping import splat_depth

FIGURE = Path(__file__).parent / "figures" / "adaptive_field.png"


def motorcycle() -> tuple[np.ndarray, ViewSet, ViewSet]:
    """The right photograph, its view with depth warped from the left, and the left view."""
    left, right, disparity = data.stereo_motorcycle()
    known = np.isfinite(disparity)
    focal, offset, baseline = 994.978, 31.086, 0.193001
    depth = np.where(known, baseline * focal / (np.where(known, disparity, 1.0) + offset), 0.0)
    height, width = (size // TOKEN * TOKEN for size in left.shape[:2])
    k = jnp.array([[focal, 0, 311.693], [0, focal, 255.377], [0, 0, 1]])
    other = k.at[0, 2].add(offset)
    w2c = jnp.eye(4).at[0, 3].set(-baseline)
    depth = jnp.asarray(depth, jnp.float32)
    one = (
        depth[None],
        jnp.ones((1, *depth.shape)),
        jnp.eye(4)[None],
        k[None],
        jnp.ones((1,), bool),
    )
    seen = jax.jit(splat_depth)(*one, w2c, other)
    cut = (slice(0, height), slice(0, width))
    return right[cut], view(seen[cut], w2c, other), view(depth[cut], jnp.eye(4), k)


def procedural(seed: int) -> tuple[np.ndarray, ViewSet, ViewSet]:
    """Two frames of a random room, the second four later, with their exact depth."""
    scene = make_scene(seed, "held_out")
    w2c, _, k = sample_revisit(seed, scene, 9, None, height=288, width=480)
    clip = render_clip(scene, w2c[jnp.array([0, 4])], k[jnp.array([0, 4])], height=288, width=480)
    parts = [
        view(*(jnp.asarray(clip[n][i]) for n in ("depth", "w2c", "intrinsics"))) for i in (1, 0)
    ]
    image = to_uint8(clip["image"][1])
    return image, parts[0], parts[1]


def view(depth: jax.Array, w2c: jax.Array, intrinsics: jax.Array) -> ViewSet:
    """One view with the confidence that its depth deserves."""
    confidence = depth_confidence(depth, w2c, intrinsics)
    return ViewSet(depth[None], w2c[None], intrinsics[None], jnp.ones((1,), bool), confidence[None])


def ellipses(geometry: SimpleNamespace, views: ViewSet) -> tuple[np.ndarray, np.ndarray]:
    """Outlines [t, 33, 2] in pixels and both radii [t, 2] in metres along the surface."""
    xx, yy, zz, xy, xz, yz = np.moveaxis(np.asarray(geometry.metric[0], float), -1, 0)
    matrix = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).reshape(-1, 3, 3)
    values, axes = np.linalg.eigh(matrix)
    radii = 1 / np.sqrt(values[:, :2])
    turn = np.linspace(0, 2 * np.pi, 33)
    circle = np.stack([np.cos(turn), np.sin(turn)], -1)
    offset = np.einsum("nk,tk,tck->tnc", circle, radii, axes[:, :, :2])
    points = np.asarray(geometry.position[0])[:, None] + offset
    w2c, k = np.asarray(views.w2c[0]), np.asarray(views.intrinsics[0])
    q = (points @ w2c[:3, :3].T + w2c[:3, 3]) @ k.T
    # Outlines that reach behind the camera are cut there.
    return q[..., :2] / np.where(q[..., 2:] > 0.1, q[..., 2:], np.nan), radii


def main() -> None:
    """Draw three rows and write the picture."""
    rows = [("motorcycle", motorcycle()), ("room 3", procedural(3)), ("room 11", procedural(11))]
    figure, axes = plt.subplots(3, 3, figsize=(19, 13), layout="constrained")
    geometry = jax.jit(token_geometry)
    for axis, (name, (image, target, reference)) in zip(axes, rows, strict=True):
        query, key = geometry(target, reference), geometry(reference, target)
        height, width = image.shape[0] // TOKEN, image.shape[1] // TOKEN
        outline, radii = ellipses(query, target)
        valid = np.asarray(query.valid[0])
        axis[0].imshow(image)
        for token in range(height * width):
            if token // width % 2 == token % width % 2 == 0 and valid[token]:
                axis[0].plot(*outline[token].T, color="cyan", linewidth=0.8)
        axis[0].set_xlim(0, image.shape[1])
        axis[0].set_ylim(image.shape[0], 0)
        axis[0].set_title(f"{name}: fields of every second token")
        size = np.where(valid, np.sqrt(radii.prod(1)), np.nan).reshape(height, width)
        shown = axis[1].imshow(size, cmap="viridis", vmax=np.nanquantile(size, 0.98))
        figure.colorbar(shown, ax=axis[1], shrink=0.8)
        axis[1].set_title("mean radius along the surface, m")
        mask = from_geometry(query, key, tile_q=1, tile_k=1)
        allowed = np.asarray(mask.dense())[0, 0].sum(1).reshape(height, width)
        shown = axis[2].imshow(allowed, cmap="magma", vmax=np.quantile(allowed, 0.98))
        figure.colorbar(shown, ax=axis[2], shrink=0.8)
        axis[2].set_title(f"keys allowed: mean {allowed.mean():.1f} of {height * width}")
        for part in axis:
            part.set_axis_off()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=60)
    print(f"wrote {FIGURE}")


if __name__ == "__main__":
    main()
