"""Clips to learn copying from: one view to make, the views that saw it, and a coarse render of it.

What is to be made is a picture of 12 x 16 colours, each the mean of 8 x 8 pixels of a procedural
scene; a token is 2 x 2 of them. Three references are other views of the same scene. Of the target
the model is told what the official control branch tells: a render of points, here as coarse as the
tokens (6 x 8, one colour a token, holes grey), so that everything finer than a token has to come
from the references. Geometry is the scene's own: what is compared is how attention uses it.
"""

import typing
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from tqdm import tqdm

from pallas_kernels import TokenGeometry
from worldstereo_jax.array_types import Array, Float, Int
from worldstereo_jax.data.scene_source import LongWorlds
from worldstereo_jax.geometry.cameras import (
    pixel_grid,
    polar_places,
    resize_intrinsics,
    unproject,
)
from worldstereo_jax.geometry.splat import pixel_radius, render_points, solid_image
from worldstereo_jax.memory.masks import TOKEN, ViewSet, token_geometries
from worldstereo_jax.training.clip_cache import ClipCache, ClipCacheWriter

HEIGHT, WIDTH = 96, 128
REFERENCES = 3
COLOUR = 8
"""Side in pixels of what one colour of the small picture stands for."""
ROWS, COLUMNS = HEIGHT // COLOUR, WIDTH // COLOUR
PATHS, FRAMES = 2, 6


@struct.dataclass
@typing.no_type_check
class CopyClip:
    """One view to make from others; a leading batch axis is added by stacking.

    Attributes:
        target: colours of the view to make [rows, columns, 3], in [-1, 1].
        anchor: its coarse render [rows, columns, 3], 0 at holes.
        references: colours of the views that saw it [r, rows, columns, 3].
        w2c, reference_w2c: cameras [1, 4, 4] and [r, 4, 4].
        place, reference_place: where the tokens' surfaces are as the target's camera sees them,
            (log distance, elevation, azimuth) in tokens, [t, 3] and [r * t, 3].
        geometry, reference_geometry: of the tokens, [t, ...] and [r * t, ...].
    """

    target: jax.Array
    anchor: jax.Array
    references: jax.Array
    w2c: jax.Array
    reference_w2c: jax.Array
    place: jax.Array
    reference_place: jax.Array
    geometry: TokenGeometry
    reference_geometry: TokenGeometry


def seen_colours(clip: CopyClip) -> Float[Array, "*b rows columns"]:
    """1 at the colours of target tokens whose surface some reference shows, else 0."""
    geometry = clip.geometry
    seen = geometry.valid & (geometry.visibility != 0).any(-1)
    tokens = seen.reshape(*seen.shape[:-1], HEIGHT // TOKEN, WIDTH // TOKEN)
    side = TOKEN // COLOUR
    return tokens.repeat(side, -1).repeat(side, -2).astype(jnp.float32)


@jax.jit
def copy_clip(
    image: Float[Array, "f h w 3"],
    depth: Float[Array, "f h w"],
    w2c: Float[Array, "f 4 4"],
    intrinsics: Float[Array, "f 3 3"],
    chosen: Int[Array, "n"],
) -> CopyClip:
    """The clip whose target is frame `chosen[0]` and whose references are the others chosen."""
    image, depth, w2c, intrinsics = (x[chosen] for x in (image, depth, w2c, intrinsics))
    colours = image.reshape(-1, ROWS, COLOUR, COLUMNS, COLOUR, 3).mean((2, 4))
    sure = jnp.ones((REFERENCES + 1,), bool)
    views = ViewSet(depth, w2c, intrinsics, sure)
    target_views, reference_views = (
        jax.tree.map(lambda x, part=part: x[part], views) for part in (slice(1), slice(1, None))
    )
    geometry, reference_geometry = jax.tree.map(
        lambda x: x[0], token_geometries(target_views, reference_views)
    )
    centre = slice(COLOUR // 2, None, COLOUR)
    pixels = pixel_grid(HEIGHT, WIDTH)[centre, centre]
    points = jax.vmap(lambda z, pose, k: unproject(pixels, z, pose, k))(
        depth[1:, centre, centre], w2c[1:], intrinsics[1:]
    )
    coarse = (HEIGHT // TOKEN, WIDTH // TOKEN)
    render = render_points(
        points.reshape(-1, 3),
        colours[1:].reshape(-1, 3),
        jnp.ones((points.size // 3,), bool),
        w2c[0],
        resize_intrinsics(intrinsics[0], (HEIGHT, WIDTH), coarse),
        height=coarse[0],
        width=coarse[1],
        radius_ndc=pixel_radius(*coarse, 1.0),
    )
    anchor = jnp.repeat(jnp.repeat(solid_image(render), TOKEN // COLOUR, 0), TOKEN // COLOUR, 1)

    def places(x: TokenGeometry) -> Array:
        return polar_places(x.position, w2c[0], intrinsics[0], step=TOKEN)

    return CopyClip(
        target=colours[0],
        anchor=anchor,
        references=colours[1:],
        w2c=w2c[:1],
        reference_w2c=w2c[1:],
        place=places(geometry),
        reference_place=places(reference_geometry),
        geometry=geometry,
        reference_geometry=reference_geometry,
    )


def scene_clips(seeds: range, split: str, per_scene: int) -> Iterator[CopyClip]:
    """Clips of scenes, one scene after another: target and references drawn from both its paths."""
    source = LongWorlds(seeds, paths=PATHS, split=split, frames=FRAMES, height=HEIGHT, width=WIDTH)
    for number, seed in enumerate(seeds):
        scene = source[number]
        both = [
            scene[name].reshape(-1, *scene[name].shape[2:])
            for name in ("image", "depth", "w2c", "intrinsics")
        ]
        # All paths begin at the same camera.
        distinct = [i for i in range(PATHS * FRAMES) if i == 0 or i % FRAMES]
        rng = np.random.default_rng((9, seed))
        for _ in range(per_scene):
            chosen = rng.permutation(distinct)[: 1 + REFERENCES]
            yield copy_clip(*both, chosen)


def load_clips(folder: Path, seeds: range, split: str, per_scene: int) -> CopyClip:
    """Clips of scenes as one stack on the host, from `folder` where they were made before."""
    count = len(seeds) * per_scene
    example = jax.eval_shape(
        copy_clip,
        *(
            jax.ShapeDtypeStruct((PATHS * FRAMES, *shape), jnp.float32)
            for shape in ((HEIGHT, WIDTH, 3), (HEIGHT, WIDTH), (4, 4), (3, 3))
        ),
        jax.ShapeDtypeStruct((1 + REFERENCES,), jnp.int32),
    )
    leaves, form = jax.tree.flatten_with_path(example)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    blank = {n: np.zeros(x.shape, x.dtype) for n, (_, x) in zip(names, leaves, strict=True)}
    recipe = {
        "first": seeds.start, "scenes": len(seeds), "split": split, "per_scene": per_scene,
        "size": [HEIGHT, WIDTH, PATHS, FRAMES],
    }  # fmt: skip
    writer = ClipCacheWriter(folder, count, blank, recipe)
    writer.written -= writer.written % per_scene
    left = seeds[writer.written // per_scene :]
    if left:
        for clip in tqdm(
            scene_clips(left, split, per_scene), total=len(left) * per_scene, unit="clip"
        ):
            writer.append(dict(zip(names, map(np.asarray, jax.tree.leaves(clip)), strict=True)))
    cache = ClipCache(folder)
    return jax.tree.unflatten(form, [np.asarray(cache.fields[name]) for name in names])
