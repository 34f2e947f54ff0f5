"""What an official model is told about a camera path: which views, renders, rays and latents.

In two stages, since only the second needs weights: the memories are read first (`draw_renders`,
`choose_views` and, for a model that takes warps or entries, `read_stereo`), then
`encode_conditions` brings pixels into the latent space.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pallas_kernels import TokenGeometry
from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.geometry.cameras import camera_vector, plucker_rays, polar_places
from worldstereo_jax.geometry.normalisation import normalise_unified
from worldstereo_jax.geometry.splat import Render
from worldstereo_jax.memory.entry_points import POINT_CONFIDENCE
from worldstereo_jax.memory.entry_tokens import EntryTokens
from worldstereo_jax.memory.masks import TOKEN, ViewSet, token_geometries
from worldstereo_jax.memory.retrieval import (
    camera_features,
    overlap_score,
    quality_score,
    select_references,
)
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory
from worldstereo_jax.models.wan_vae_clips import encode_frames
from worldstereo_jax.models.wan_vae_tiles import encode_frames_sharded
from worldstereo_jax.models.worldstereo import MemoryEntries, WarpedMemory
from worldstereo_jax.sampling.latent_clips import encode_clips, first_frame_condition
from worldstereo_jax.sampling.official_world import MODEL_AXIS, OfficialWorld
from worldstereo_jax.sampling.surface_places import surface_places
from worldstereo_jax.sampling.warp_reading import (
    CandidatePictures,
    candidate_features,
    candidate_pictures,
    divide,
    fill_along,
    read_entries,
    read_warps,
)
from worldstereo_jax.sampling.world import Cameras, WorldMemory, render_points


@struct.dataclass
@typing.no_type_check
class Renders:
    """What is known of a clip's pixels before it is made.

    Attributes:
        render_image: point render [f, h, w, 3] in [-1, 1]; frame 0 is the input image.
        render_mask: its holes [f, h, w], 1 = hole.
        depth: depth known from the global memory [f, h, w], 0 = unknown.
        points: the global memory's own render, which completes warps; None for a model without
            warps.
    """

    render_image: jax.Array
    render_mask: jax.Array
    depth: jax.Array
    points: Render | None = None


@struct.dataclass
@typing.no_type_check
class ChosenViews:
    """The stored views that a clip attends to (row S26).

    Attributes:
        index: int32 [r], places in the bank; 0 where not valid.
        position: int32 [r], the first target frame that chose the view, minus one.
        valid: bool [r].
    """

    index: jax.Array
    position: jax.Array
    valid: jax.Array


@struct.dataclass
@typing.no_type_check
class StereoRead:
    """What a clip reads of the spatial-stereo memory beside the views it attends to.

    Attributes:
        pictures: warps that become candidates, in the frames of the video; None for a model
            without `warped_width`.
        entries: surface entries that those views do not show; None for one without `entry_width`.
    """

    pictures: CandidatePictures | None
    entries: EntryTokens | None


@struct.dataclass
@typing.no_type_check
class OfficialConditions:
    """Everything but text and image tokens that the model is told about one clip.

    Attributes:
        condition: 4 mask channels, 1 on frame 0 only, and the latent behind them [f, lh, lw, 20].
        render_latent: latent of the point render [f, lh, lw, 16].
        render_mask: its holes [F, h, w], 1 = hole; F frames of video, f of latents.
        plucker: rays of the target cameras [F, h, w, 6], unified-normalised.
        camera: quaternion wxyz and translation of the latent frames' cameras [f, 7].
        reference: views to attend to, latent | ones(4) | latent [r, lh, lw, 36].
        reference_index: int32 [r], see `models.worldstereo.References`.
        reference_camera: their camera vectors [r, 7].
        reference_valid: bool [r].
        target_geometry, reference_geometry: geometry of both sides' tokens, for the
            correspondence pattern; None for the dense one, except that entries need the target's.
        warped: latents of the warped views on the target's grid (row S18), k candidates
            [f, lh, lw, k, 17]; None for a model that takes none.
        entries: surface entries [e, ...] (row S28), None for a model that takes none.
        entry_geometry: their geometry.
        reference_place, target_place: where the surfaces are that both sides' tokens show
            [r * t, 3] and [t, 3]; None for a model that takes no such positions.
    """

    condition: jax.Array
    render_latent: jax.Array
    render_mask: jax.Array
    plucker: jax.Array
    camera: jax.Array
    reference: jax.Array
    reference_index: jax.Array
    reference_camera: jax.Array
    reference_valid: jax.Array
    target_geometry: TokenGeometry | None
    reference_geometry: TokenGeometry | None
    warped: WarpedMemory | None = None
    entries: MemoryEntries | None = None
    entry_geometry: TokenGeometry | None = None
    reference_place: jax.Array | None = None
    target_place: jax.Array | None = None


def draw_renders(
    world: OfficialWorld,
    memory: WorldMemory,
    cameras: Cameras,
    first_image: Float[Array, "h w 3"],
) -> Renders:
    """The global memory along a path, in the official form: frame 0 is the image, without holes."""
    render = render_points(world.rollout, memory.points, cameras, first_image)
    return Renders(
        render_image=render.image,
        render_mask=render.mask,
        depth=render.depth,
        points=render if world.denoiser.warped_width > 0 else None,
    )


def choose_views(
    world: OfficialWorld,
    stereo: SpatialStereoMemory,
    image_features: Float[Array, "v d"],
    cameras: Cameras,
    bonus: Float[Array, "t v"],
) -> ChosenViews:
    """The views of the bank that a clip attends to.

    Args:
        world: networks and choices.
        stereo: the bank; at least one view must be stored.
        image_features: pooled DINOv2 feature of every stored view, read by the official choice
            only, and there only when the frames want more views than there is room for.
        cameras: the path, one camera per latent frame.
        bonus: added to the score of every target frame after the first, for the official choice
            (views known to belong); zeros for none.
    """
    config = world.rollout
    count = config.references
    if world.choices.retrieval == "coverage":
        found = world.reading.retrieve(stereo, cameras.w2c, cameras.intrinsics, count=count)
        position = jnp.maximum(found.frame - 1, 0)
        return ChosenViews(index=found.index, position=position, valid=found.valid)
    # The official code takes the first stored view's intrinsics for the targets.
    intrinsics = jnp.broadcast_to(stereo.intrinsics[0], cameras.intrinsics[1:].shape)
    score = overlap_score(
        cameras.w2c[1:],
        intrinsics,
        stereo.w2c,
        stereo.intrinsics,
        width=config.width,
        height=config.height,
    )
    # `quality_score` has the official weights, and so takes the channels in the official order.
    step = 1 if world.choices.quirks.quality_channels == "official" else -1
    chosen = select_references(
        score,
        stereo.valid,
        camera_features(stereo.w2c),
        image_features,
        jax.lax.map(lambda image: quality_score(image[..., ::step]), stereo.images),
        count=count,
        bonus=bonus,
    )
    return ChosenViews(chosen.view, chosen.position, jnp.asarray(chosen.valid))


def latent_cameras(world: OfficialWorld, cameras: Cameras) -> Cameras:
    """The cameras of the latent frames: all of a clip of keyframes, else every fourth."""
    stride = world.frame_stride
    return Cameras(w2c=cameras.w2c[::stride], intrinsics=cameras.intrinsics[::stride])


def read_stereo(
    world: OfficialWorld,
    memory: WorldMemory,
    cameras: Cameras,
    renders: Renders,
    views: ChosenViews,
) -> StereoRead:
    """Warps and entries, for a model that takes them (rows S18, S28).

    Args:
        world: networks and choices; its `reading` says how.
        memory: both memories; at least one view must be stored.
        cameras: the path, one camera per frame of the video.
        renders: of `draw_renders`.
        views: that the clip attends to; entries that they alone show are not taken.
    """
    pictures = entries = None
    if world.denoiser.warped_width > 0:
        assert renders.points is not None
        read = read_warps(world.rollout, world.reading, memory, cameras)
        known = divide(read.fused, renders.points)
        pictures = candidate_pictures(fill_along(known, memory.stereo, cameras), read)
    if world.denoiser.entry_width > 0:
        targets = _target_views(world, cameras, renders)
        entries = read_entries(
            world.rollout, world.reading, memory.entries, targets, views.index, views.valid
        )
    return StereoRead(pictures, entries)


def encode_conditions(
    world: OfficialWorld,
    vae_params: PyTree,
    stereo: SpatialStereoMemory,
    cameras: Cameras,
    renders: Renders,
    views: ChosenViews,
    read: StereoRead | None = None,
) -> OfficialConditions:
    """Lay out what was read of the memories as the model takes it.

    Args:
        world: networks and choices.
        vae_params: parameters of its autoencoder.
        stereo: the bank that `views` were chosen from.
        cameras: the path, one camera per frame of the video.
        renders: of the path.
        views: of the bank.
        read: of `read_stereo`; None for a model that takes neither warps nor entries.
    """
    choices, at = world.choices, views.index
    target_w2c, reference_w2c = normalise_unified(cameras.w2c, stereo.w2c[at])
    rays = plucker_rays(
        target_w2c,
        cameras.intrinsics,
        world.rollout.height,
        world.rollout.width,
        x_offset=choices.quirks.ray_x_offset,
    )
    pictures, tokens = (None, None) if read is None else (read.pictures, read.entries)
    condition, render_latent, view, candidates = _encode_pictures(
        world,
        vae_params,
        renders.render_image,
        stereo.images[at],
        None if pictures is None else jnp.moveaxis(pictures.images, -2, 0),
    )
    seen = wanted = reference_place = target_place = None
    on_surface = world.denoiser.reference_positions == "surface"
    masked = choices.attention == "correspondence"
    if masked or tokens is not None or on_surface:
        wanted, seen = token_geometries(
            _target_views(world, cameras, renders),
            ViewSet(stereo.depth[at], stereo.w2c[at], stereo.intrinsics[at], views.valid),
        )
    if on_surface and wanted is not None and seen is not None:
        path = latent_cameras(world, cameras)
        stored = Cameras(w2c=stereo.w2c[at], intrinsics=stereo.intrinsics[at])
        reference_place, target_place = (
            surface_places(
                jax.tree.map(lambda leaf: leaf[0], geometry),
                own,
                path,
                height=world.rollout.height,
                width=world.rollout.width,
            )
            for geometry, own in ((seen, stored), (wanted, path))
        )
    entries = entry_geometry = None
    if tokens is not None and wanted is not None:
        camera = (cameras.w2c[0], cameras.intrinsics[0])
        entries = MemoryEntries(
            features=tokens.features,
            place=polar_places(tokens.geometry.position, *camera, step=TOKEN),
            target_place=polar_places(wanted.position[0], *camera, step=TOKEN),
            valid=tokens.valid,
        )
        entry_geometry = jax.tree.map(lambda leaf: leaf[None], tokens.geometry)
    warped = None
    if pictures is not None and candidates is not None:
        warped = WarpedMemory(*candidate_features(candidates, pictures))
    return OfficialConditions(
        condition=first_frame_condition(condition),
        render_latent=render_latent,
        render_mask=renders.render_mask,
        plucker=rays,
        camera=camera_vector(target_w2c[:: world.frame_stride]),
        reference=jnp.concatenate([view, jnp.ones_like(view[..., :4]), view], axis=-1),
        reference_index=views.position,
        reference_camera=camera_vector(reference_w2c),
        reference_valid=views.valid,
        target_geometry=wanted if masked or tokens is not None else None,
        reference_geometry=seen if masked else None,
        warped=warped,
        entries=entries,
        entry_geometry=entry_geometry,
        reference_place=reference_place,
        target_place=target_place,
    )


def _target_views(world: OfficialWorld, cameras: Cameras, renders: Renders) -> ViewSet:
    """The latent frames, with the depth that is known of them.

    Of which no part is surer than another: it is read from points alone, and so is most of what
    stored frames have. That doubt would widen every field alike, and tell no tokens apart.
    """
    targets, known = latent_cameras(world, cameras), renders.depth[:: world.frame_stride]
    return ViewSet(known, targets.w2c, targets.intrinsics, jnp.ones(known.shape[:1], bool))


def point_confidence(depth: Float[Array, "f h w"]) -> Float[Array, "f h w"]:
    """Confidence of depth that is known from points, 0 where it is not known."""
    return jnp.where(depth > 0, POINT_CONFIDENCE, 0.0)


def encode_images(
    world: OfficialWorld, vae_params: PyTree, images: Float[Array, "n h w 3"]
) -> Float[Array, "n lh lw 16"]:
    """Latents of images, each alone, whole or in tiles; either spread over a mesh's devices."""
    tile, at_once = world.choices.vae_tile, world.choices.vae_frames
    if tile is not None:
        frames = images[:, None]
        return encode_clips(vae_params, frames, world.vae, tile=tile, mesh=world.mesh)[:, 0]
    if world.mesh is not None:
        return encode_frames_sharded(
            vae_params, images[None], world.vae, world.mesh, axis=MODEL_AXIS, at_once=at_once
        )[0]
    return encode_frames(vae_params, images[None], world.vae, at_once=at_once)[0]


def encode_video(
    world: OfficialWorld, vae_params: PyTree, video: Float[Array, "F h w 3"]
) -> Float[Array, "f lh lw 16"]:
    """The latent of a clip: that of each frame for keyframes, else of the whole."""
    encode = encode_images if world.frame_stride == 1 else _encode_clip
    return encode(world, vae_params, video)


def _encode_clip(
    world: OfficialWorld, vae_params: PyTree, clip: Float[Array, "F h w 3"]
) -> Float[Array, "f lh lw 16"]:
    """Latents of a clip whose frames follow each other: whole, or in tiles that devices share."""
    tile, mesh = world.choices.vae_tile, world.mesh
    return encode_clips(vae_params, clip[None], world.vae, tile=tile, mesh=mesh)[0]


def _encode_pictures(
    world: OfficialWorld,
    vae_params: PyTree,
    render: Float[Array, "F h w 3"],
    views: Float[Array, "r h w 3"],
    warps: Float[Array, "k F h w 3"] | None,
) -> tuple[
    Float[Array, "f lh lw 16"],
    Float[Array, "f lh lw 16"],
    Float[Array, "r lh lw 16"],
    Float[Array, "k f lh lw 16"] | None,
]:
    """Latents of the condition, the renders, the views and the warps.

    What is encoded alone goes through the encoder in one call, which is compiled once. Warps are
    encoded as the target is, so that a latent pixel of theirs stands for the same as one of its:
    frames of keyframes alone, a clip whose frames follow each other as a clip.
    """
    keyframes = world.frame_stride == 1
    grey = jnp.zeros_like(render[:1])
    lead = render if keyframes else render[:1]
    alone = [lead, views, grey]
    if warps is not None and keyframes:
        alone.append(warps.reshape(-1, *render.shape[1:]))
    latents = encode_images(world, vae_params, jnp.concatenate(alone))
    ahead, view, latents, found = jnp.split(
        latents, np.cumsum([len(part) for part in alone[:3]]).tolist()
    )
    candidates = None
    if warps is not None and keyframes:
        candidates = found.reshape(*warps.shape[:2], *found.shape[1:])
    elif warps is not None:
        candidates = jax.lax.map(lambda clip: _encode_clip(world, vae_params, clip), warps)
    render_latent = ahead if keyframes else _encode_clip(world, vae_params, render)
    frames = world.latent_frames
    if world.choices.latent_condition == "first_frame_only":
        rest = jnp.broadcast_to(latents[-1:], (frames - 1, *latents.shape[1:]))
        return jnp.concatenate([ahead[:1], rest]), render_latent, view, candidates
    # A causal clip also where the frames are keyframes; mid-grey is 0.
    length = (frames - 1) * world.vae.temporal_stride + 1
    clip = jnp.zeros((length, *render.shape[1:]), jnp.float32).at[0].set(render[0])
    return _encode_clip(world, vae_params, clip), render_latent, view, candidates
