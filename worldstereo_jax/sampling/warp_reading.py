"""The stored views as a path's cameras would see them, laid out for the model (row S18), and the
entries beside them.

What the small world and the official models read alike: the best views warped and fused, completed
by entries, then by points, then from around; and beside this picture the best single views. Each
autoencoder brings the pictures into its own latents, which `candidate_features` joins with how much
was really seen and how well.
"""

import functools
import typing

import jax
import jax.numpy as jnp
from einops import reduce

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.geometry.splat import Render, solid_image
from worldstereo_jax.memory.coverage import Retrieved, refuted_pixels
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_completion import entries_beyond
from worldstereo_jax.memory.entry_points import POINT_CONFIDENCE
from worldstereo_jax.memory.entry_scope import read_in_view
from worldstereo_jax.memory.entry_tokens import EntryTokens
from worldstereo_jax.memory.environment import mirrored_environment
from worldstereo_jax.memory.hole_filling import fill_holes
from worldstereo_jax.memory.masks import ViewSet
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory, frontal_confidence
from worldstereo_jax.memory.surface import inverse_depth, shines_through
from worldstereo_jax.memory.warping import Warped, fuse_candidates
from worldstereo_jax.models.control import LATENT_STRIDE
from worldstereo_jax.sampling.reading import Reading
from worldstereo_jax.sampling.world import Cameras, RolloutConfig, WorldMemory

# Views averaged into the fused warp of a pixel.
FUSED_VIEWS = 4
# Share of inverse depth by which a point lies behind the surfaces around it, not on one of them.
BEHIND = 0.1
# Log-weight of a latent pixel on which no stored view falls: the filled-in guess stays readable
# at the model's entry, while any true observation outweighs it.
UNSEEN_LOG_WEIGHT = -6.0

WARPED_CHANNELS = 17
"""Channels of a candidate: 16 of the latent, and the share of the pixel that was really seen."""


class WarpRead(typing.NamedTuple):
    """The bank seen along a path of f cameras.

    retrieved: the views that were warped. fused: their fusion, completed by entries. single
    [f, h, w, k, 3]: the k best views of each pixel, 0 where there is none. single_log_weight
    [f, h, w, k]: how well each shows it, -inf where there is none.
    """

    retrieved: Retrieved
    fused: Warped
    single: Float[Array, "f h w k 3"]
    single_log_weight: Float[Array, "f h w k"]


class Division(typing.NamedTuple):
    """Who says what of each pixel: views and entries, else points, else nobody.

    image [f, h, w, 3]: the fused warp, and the points where these are to be taken. hole [f, h, w]:
    1 where neither says anything. depth [f, h, w]: known from either, world units, 0 = unknown.
    confidence [f, h, w]: of the depth, in (0, 1] where it is known, 0 elsewhere.
    """

    image: Float[Array, "f h w 3"]
    hole: Float[Array, "f h w"]
    depth: Float[Array, "f h w"]
    confidence: Float[Array, "f h w"]


class CandidatePictures(typing.NamedTuple):
    """Pictures that become candidates: the filled fusion first, then k - 1 single views.

    images [f, h, w, k, 3]: in [-1, 1]. weight [f, h, w, k]: how well what was seen shows the pixel,
    0 where nothing was. cover [f, h, w, k]: 1 where it was seen, 0 elsewhere.
    """

    images: Float[Array, "f h w k 3"]
    weight: Float[Array, "f h w k"]
    cover: Float[Array, "f h w k"]


def read_warps(
    config: RolloutConfig, reading: Reading, memory: WorldMemory, cameras: Cameras
) -> WarpRead:
    """Warp the bank's best views into every camera of a path (rows S18, S26, S28).

    Args:
        config: `warp_views` views are warped, `candidates` single ones kept, and at most
            `entry_candidates` entries read without the others.
        reading: its functions choose the views, warp them and complete their fusion.
        memory: at least one keyframe must be stored.
        cameras: the path.
    """
    stereo = memory.stereo
    retrieved = reading.retrieve(stereo, cameras.w2c, cameras.intrinsics, count=config.warp_views)
    chosen = retrieved.index
    bank = (
        stereo.images[chosen],
        stereo.depth[chosen],
        stereo.confidence[chosen],
        stereo.w2c[chosen],
        stereo.intrinsics[chosen],
        retrieved.valid,
    )

    warp = reading.warp(
        *bank,
        k=max(FUSED_VIEWS, config.candidates),
        measured=stereo.measured[chosen],
        # By all that is stored: those that were chosen are too few to tell who is wrong.
        refuted=refuted_pixels(stereo, chosen),
    )

    def one(camera: tuple[Array, Array]) -> tuple[Warped, Array, Array]:
        # Fused here: a clip's candidates together would take gigabytes at full size.
        found = warp(*camera)
        best = found.features[..., : config.candidates, :]
        return fuse_candidates(found), best, found.log_weight[..., : config.candidates]

    fused, single, log_weight = jax.lax.map(one, (cameras.w2c, cameras.intrinsics))
    path = (cameras.w2c, cameras.intrinsics)
    completed = read_in_view(
        lambda entries: reading.complete_warp(fused, entries, *path),
        entries_beyond(memory.entries, chosen, retrieved.valid),
        *path,
        height=config.height,
        width=config.width,
        most=config.entry_candidates,
    )
    return WarpRead(retrieved, completed, single, log_weight)


def read_entries(
    config: RolloutConfig,
    reading: Reading,
    bank: EntryBank,
    targets: ViewSet,
    attended: Int[Array, "r"],
    attended_valid: Bool[Array, "r"],
) -> EntryTokens:
    """Surface entries that a clip attends to, beside its views (row S28).

    Args:
        config: at most `entry_tokens` of them, chosen among the `entry_candidates` in view.
        reading: its `select_entries` chooses.
        bank: all entries.
        targets: the clip's frames, of the config's height and width.
        attended: places in the bank of views of those that the clip attends to.
        attended_valid: which of them are meant.
    """
    return read_in_view(
        lambda bank: reading.select_entries(
            bank, targets, attended, attended_valid, count=config.entry_tokens
        ),
        bank,
        targets.w2c,
        targets.intrinsics,
        height=config.height,
        width=config.width,
        most=config.entry_candidates,
    )


def divide(warped: Warped, render: Render) -> Division:
    """The fused warp with the points' colours where these speak; see `where_points_speak`.

    Args:
        warped: of the stereo bank, along a path.
        render: of the global memory, along the same path.
    """
    depth, by_points = where_points_speak(warped, render)
    image = jnp.where(by_points[..., None], solid_image(render), warped.features)
    confidence = jnp.where(warped.mask < 0.5, warped.confidence, POINT_CONFIDENCE)
    return Division(
        image=image,
        hole=jnp.where(by_points, 0.0, warped.mask),
        depth=depth,
        confidence=jnp.where(depth > 0, confidence, 0.0),
    )


def path_views(
    depth: Float[Array, "f h w"], confidence: Float[Array, "f h w"], cameras: Cameras
) -> ViewSet:
    """The frames of a path with what is known of their depth, for `token_geometry` (row S19).

    Args:
        depth: camera z, world units, 0 = unknown.
        confidence: of the depth, 0 .. 1, as in `Division`.
        cameras: f of them.
    """
    valid = jnp.ones(depth.shape[:1], bool)
    return ViewSet(depth, cameras.w2c, cameras.intrinsics, valid, _half_doubt(confidence))


def stored_views(
    stereo: SpatialStereoMemory, index: Int[Array, "r"], valid: Bool[Array, "r"]
) -> ViewSet:
    """Views of the bank with what is known of their depth, for `token_geometry` (row S19).

    Tokens count the angle at which they are seen by themselves: it is taken out of the confidence.

    Args:
        stereo: the bank.
        index: the views' places in it.
        valid: which of them are meant.
    """
    views = stereo.depth[index], stereo.w2c[index], stereo.intrinsics[index]
    confidence = jax.vmap(frontal_confidence)(stereo.confidence[index], *views)
    return ViewSet(*views, valid, _half_doubt(confidence))


def _half_doubt(confidence: Float[Array, "f h w"]) -> Float[Array, "f h w"]:
    """Confidence as tokens take it: depth of any is there, and doubted by no more than half.

    A token is looked up where its depth says; doubt makes its field wider and lets it weigh less,
    but only what nothing is known of should find nothing.
    """
    return jnp.where(confidence > 0, 0.5 + 0.5 * confidence, 0.0)


def where_points_speak(
    warped: Warped, render: Render
) -> tuple[Float[Array, "f h w"], Bool[Array, "f h w"]]:
    """Division of labour: where no view is remembered, the coarse points speak (rows S26, S34).

    Not in the gaps of a surface that views do show, though: there the points are of what is behind.

    Args:
        warped: of the stereo bank, along a path.
        render: of the global memory, along the same path.

    Returns:
        Depth known from either memory, world units, 0 where neither knows it; and the pixels at
        which it is that of the points, and their colours are to be taken.
    """
    depth = jnp.where(warped.mask < 0.5, warped.depth, render.depth)
    gaps = jax.vmap(functools.partial(shines_through, tolerance=BEHIND))(inverse_depth(depth))
    unseen = warped.mask > 0.5
    by_points = unseen & (render.mask < 0.5) & ~gaps
    return jnp.where(unseen & gaps, 0.0, depth), by_points


def surroundings(
    stereo: SpatialStereoMemory, w2c: Float[Array, "4 4"], intrinsics: Float[Array, "3 3"]
) -> Float[Array, "h w 3"]:
    """What a camera would see of the first stored view continued around the world (row S36)."""
    return mirrored_environment(
        stereo.images[0], stereo.w2c[0], stereo.intrinsics[0], w2c, intrinsics
    )


def fill_along(
    known: Division, stereo: SpatialStereoMemory, cameras: Cameras
) -> Float[Array, "f h w 3"]:
    """The pictures of a path with their holes filled, a frame at a time."""

    def one(frame: tuple[Array, ...]) -> Array:
        image, hole, depth, w2c, intrinsics = frame
        return fill_holes(image, hole, depth, surroundings(stereo, w2c, intrinsics))

    parts = known.image, known.hole, known.depth, cameras.w2c, cameras.intrinsics
    return jax.lax.map(one, parts)


def candidate_pictures(filled: Float[Array, "f h w 3"], read: WarpRead) -> CandidatePictures:
    """The filled fusion and the best single views; where one shows nothing, the fusion again."""
    exists = jnp.isfinite(read.single_log_weight)
    single = jnp.where(exists[..., None], read.single, filled[..., None, :])
    weight = jnp.where(exists, jnp.exp(read.single_log_weight), 0.0)
    seen = 1.0 - read.fused.mask[..., None]
    return CandidatePictures(
        images=jnp.concatenate([filled[..., None, :], single], axis=-2),
        weight=jnp.concatenate([read.fused.weight[..., None], weight], axis=-1),
        cover=jnp.concatenate([seen, exists.astype(jnp.float32)], axis=-1),
    )


def candidate_features(
    latents: Float[Array, "k f lh lw 16"], pictures: CandidatePictures
) -> tuple[Float[Array, "f lh lw k 17"], Float[Array, "f lh lw k"]]:
    """Latents of the candidates' pictures, with cover and log-weight on the same grid.

    Of a latent pixel both are means over all that it stands for: its 8 x 8 pixels and, in a clip
    that is encoded as one causal video, its frames (the first alone, then groups of equal size).
    A single view that shows less than half of a latent pixel is no candidate for it.

    Args:
        latents: of each candidate's frames.
        pictures: F frames; f = F, or F = 1 + a multiple of f - 1.

    Returns:
        Features, and their log-weight: -inf where a candidate does not exist.
    """
    frames, count = latents.shape[1], latents.shape[0]
    weight, cover = (
        _per_latent_pixel(value, frames) for value in (pictures.weight, pictures.cover)
    )
    features = jnp.concatenate([jnp.moveaxis(latents, 0, -2), cover[..., None]], axis=-1)
    log_weight = jnp.log(jnp.maximum(weight, jnp.exp(UNSEEN_LOG_WEIGHT)))
    is_fused = jnp.arange(count) == 0
    present = is_fused[None, None, None, :] | (cover > 0.5)
    return features, jnp.where(present, log_weight, -jnp.inf)


def _per_latent_pixel(value: Float[Array, "F h w k"], frames: int) -> Float[Array, "f lh lw k"]:
    side = LATENT_STRIDE
    value = reduce(value, "f (lh y) (lw x) k -> f lh lw k", "mean", y=side, x=side)
    if frames == value.shape[0]:
        return value
    rest = reduce(value[1:], "(f s) lh lw k -> f lh lw k", "mean", f=frames - 1)
    return jnp.concatenate([value[:1], rest])
