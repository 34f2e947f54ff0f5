"""What the memories tell the model about a camera path, before any noise is drawn.

`gather_conditions` reads both memories once for a path: renders of the global point cloud, warps
of the stereo bank, reference views and the geometry of their tokens. The result is a pytree that
a sampler batches, that training caches, and from which ablations remove one memory.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
from flax import struct

from pallas_kernels import TokenGeometry
from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.geometry.splat import solid_image
from worldstereo_jax.memory.entry_tokens import EntryTokens
from worldstereo_jax.memory.hole_filling import fill_holes
from worldstereo_jax.memory.masks import token_geometries
from worldstereo_jax.memory.spatial_stereo import keyframes_at
from worldstereo_jax.models.vae_tiny import encode_frames
from worldstereo_jax.sampling.warp_reading import (
    candidate_features,
    candidate_pictures,
    divide,
    path_views,
    read_entries,
    read_warps,
    stored_views,
    surroundings,
)
from worldstereo_jax.sampling.world import (
    Cameras,
    World,
    WorldMemory,
    init_memory,
    render_points,
)


@struct.dataclass
@typing.no_type_check
class Conditions:
    """Everything the model is told about one clip; a leading batch axis is added by `vmap`.

    Attributes:
        w2c: target cameras [f, 4, 4], world to camera.
        intrinsics: target intrinsics [f, 3, 3] in pixels.
        first_latent: latent of the clip's first frame [lh, lw, 16].
        render_mask: holes of the point render [f, h, w] (1 = hole, frame 0 all 0).
        render_latent: latent of the point render in solid colours, its holes filled from around
            them [f, lh, lw, 16]. (The official model leaves holes mid-grey and thin cover faded;
            `render_mask` marks holes either way, and a filled render is also a usable anchor.)
        reference_latent: views to attend to [r, lh, lw, 16].
        reference_index: int32 [r], target frame that sees most of each view, minus one.
        reference_w2c: cameras of the views [r, 4, 4].
        reference_valid: bool [r], False where fewer views than r were found.
        warped_features: per latent pixel k candidates [f, lh, lw, k, 17]: first the fusion of all
            views with its holes filled, then single views best first; 16 latent channels and the
            share of the pixel that was really seen.
        warped_log_weight: [f, lh, lw, k], -inf where a candidate does not exist.
        target_geometry: geometry of the target tokens, [f * lh/2 * lw/2, ...].
        reference_geometry: geometry of the reference tokens, [r * lh/2 * lw/2, ...].
        entries: at most e surface entries that the attended views do not show, as tokens; None for
            a model or a rollout without.
        global_enabled: bool [], False removes the global-geometric memory.
        stereo_enabled: bool [], False removes the spatial-stereo memory, entries included.
        entries_enabled: bool [], False removes the entries' tokens alone.
    """

    w2c: jax.Array
    intrinsics: jax.Array
    first_latent: jax.Array
    render_mask: jax.Array
    render_latent: jax.Array
    reference_latent: jax.Array
    reference_index: jax.Array
    reference_w2c: jax.Array
    reference_valid: jax.Array
    warped_features: jax.Array
    warped_log_weight: jax.Array
    target_geometry: TokenGeometry
    reference_geometry: TokenGeometry
    entries: EntryTokens | None
    global_enabled: jax.Array
    stereo_enabled: jax.Array
    entries_enabled: jax.Array


@struct.dataclass
@typing.no_type_check
class Guidance:
    """The pixels behind `Conditions`, for pictures, depth completion and inspection.

    Attributes:
        render_image: point render [f, h, w, 3]; frame 0 is the input image.
        render_mask: its holes [f, h, w], 1 = hole.
        warped_image: warp of the stereo bank with holes filled [f, h, w, 3].
        warped_mask: holes before filling [f, h, w], 1 = hole.
        depth: depth known from the memories [f, h, w], 0 where neither knows it.
        confidence: of that depth, in (0, 1] where it is known [f, h, w], 0 elsewhere.
    """

    render_image: jax.Array
    render_mask: jax.Array
    warped_image: jax.Array
    warped_mask: jax.Array
    depth: jax.Array
    confidence: jax.Array


def without_stereo(conditions: Conditions) -> Conditions:
    """The same conditions with the spatial-stereo memory removed."""
    return dataclasses.replace(conditions, stereo_enabled=jnp.zeros_like(conditions.stereo_enabled))


def without_entries(conditions: Conditions) -> Conditions:
    """The same conditions with the entries' tokens removed; the warp keeps what entries gave it."""
    off = jnp.zeros_like(conditions.entries_enabled)
    return dataclasses.replace(conditions, entries_enabled=off)


def without_global(conditions: Conditions) -> Conditions:
    """The same conditions with the global-geometric memory removed."""
    return dataclasses.replace(conditions, global_enabled=jnp.zeros_like(conditions.global_enabled))


def anchor(conditions: Conditions) -> Float[Array, "b f lh lw 16"]:
    """The latent the small model corrects: the best guess that the enabled memories give.

    The stereo memory's fused warp, else the point render with its holes filled, else the first
    frame held still.

    Args:
        conditions: with a leading batch axis.
    """
    still = jnp.broadcast_to(conditions.first_latent[:, None], conditions.render_latent.shape)
    expand = (slice(None), None, None, None, None)
    rendered = jnp.where(conditions.global_enabled[expand], conditions.render_latent, still)
    warped = conditions.warped_features[..., 0, :16]
    return jnp.where(conditions.stereo_enabled[expand], warped, rendered)


def gather_conditions(
    world: World, vae_params: PyTree, memory: WorldMemory, cameras: Cameras
) -> tuple[Conditions, Guidance]:
    """Read both memories for one camera path (rows S7, S17, S18, S26, S28).

    The clip's first frame is the stored view that stands at the first camera, when there is one,
    else the warp of the bank into it.

    Args:
        world: networks, sizes, and the functions that read (`World.reading`).
        vae_params: parameters of its VAE.
        memory: both memories; at least one keyframe must be stored.
        cameras: the path; frame 0 is where the clip starts.

    Returns:
        What the model is told, and the pixels behind it.
    """
    config, stereo, reading = world.rollout, memory.stereo, world.reading
    read = read_warps(config, reading, memory, cameras)
    retrieved, warped = read.retrieved, read.fused
    chosen = retrieved.index

    is_start = keyframes_at(stereo, cameras.w2c[0], cameras.intrinsics[0])
    first_image = jnp.where(is_start.any(), stereo.images[jnp.argmax(is_start)], warped.features[0])
    render = render_points(config, memory.points, cameras, first_image)
    known = divide(warped, render)
    depth = known.depth
    around = jax.vmap(functools.partial(surroundings, stereo))(cameras.w2c, cameras.intrinsics)
    # One call for both: the pyramid takes longer to compile than to compute.
    fill = jax.vmap(jax.vmap(fill_holes, in_axes=(0, 0, 0, 0)), in_axes=(0, 0, 0, None))
    render_filled, fused = fill(
        jnp.stack([solid_image(render), known.image]),
        jnp.stack([render.mask, known.hole]),
        jnp.stack([render.depth, depth]),
        around,
    )
    pictures = candidate_pictures(fused, read)
    candidates = encode_frames(world.vae, vae_params, jnp.moveaxis(pictures.images, -2, 0))
    features, log_weight = candidate_features(candidates, pictures)

    attended = chosen[: config.references]
    attended_valid = retrieved.valid[: config.references]
    target_views = path_views(depth, known.confidence, cameras)
    reference_views = stored_views(stereo, attended, attended_valid)

    # One call for all pictures, again for the compiler's sake.
    pictures = (first_image[None], render_filled, stereo.images[attended])
    latents = encode_frames(world.vae, vae_params, jnp.concatenate(pictures)[None])[0]
    first_latent, render_latent, reference_latent = jnp.split(latents, (1, 1 + config.frames))

    def unbatched(geometry: TokenGeometry) -> TokenGeometry:
        return jax.tree.map(lambda leaf: leaf[0], geometry)

    target_geometry, reference_geometry = token_geometries(target_views, reference_views)
    entries = None
    if config.entry_tokens > 0 and world.denoiser.config.entry_width > 0:
        entries = read_entries(
            config, reading, memory.entries, target_views, attended, attended_valid
        )
    on = jnp.ones((), bool)
    conditions = Conditions(
        w2c=cameras.w2c,
        intrinsics=cameras.intrinsics,
        first_latent=first_latent[0],
        render_mask=render.mask,
        render_latent=render_latent,
        reference_latent=reference_latent,
        reference_index=jnp.maximum(retrieved.frame[: config.references] - 1, 0),
        reference_w2c=stereo.w2c[attended],
        reference_valid=attended_valid,
        warped_features=features,
        warped_log_weight=log_weight,
        target_geometry=unbatched(target_geometry),
        reference_geometry=unbatched(reference_geometry),
        entries=entries,
        global_enabled=on,
        stereo_enabled=on,
        entries_enabled=on,
    )
    guidance = Guidance(
        render_image=render.image,
        render_mask=render.mask,
        warped_image=fused,
        warped_mask=warped.mask,
        depth=depth,
        confidence=known.confidence,
    )
    return conditions, guidance


@functools.cache
def example_conditions(world: World) -> Conditions:
    """Shapes and types of a world's `Conditions`, without computing any."""
    config = world.rollout
    size = (config.height, config.width)

    def gather(key: Array) -> Conditions:
        image = jnp.zeros((1, *size, 3), jnp.float32)
        vae_params = world.vae.init(key, image)["params"]
        eye = jnp.eye(4, dtype=jnp.float32)
        memory = init_memory(
            config, image[0], jnp.ones(size, jnp.float32), eye, jnp.eye(3, dtype=jnp.float32)
        )
        cameras = Cameras(
            w2c=jnp.broadcast_to(eye, (config.frames, 4, 4)),
            intrinsics=jnp.broadcast_to(jnp.eye(3, dtype=jnp.float32), (config.frames, 3, 3)),
        )
        return gather_conditions(world, vae_params, memory, cameras)[0]

    return jax.eval_shape(gather, jax.random.key(0))
