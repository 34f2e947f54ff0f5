"""What the memories tell the model about a camera path, before any noise is drawn.

`gather_conditions` reads both memories once for a path: renders of the global point cloud, warps
of the stereo bank, reference views and the geometry of their tokens. The result is a pytree that
a sampler batches, that training caches, and from which ablations remove one memory.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import PyTree

from pallas_kernels import TokenGeometry
from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.geometry.cameras import camera_vector, plucker_rays
from worldstereo_jax.geometry.normalisation import normalise_unified
from worldstereo_jax.memory.coverage import retrieve_by_coverage
from worldstereo_jax.memory.global_geometric import render_global_memory
from worldstereo_jax.memory.hole_filling import fill_holes
from worldstereo_jax.memory.masks import token_geometry
from worldstereo_jax.memory.warping import warp_candidates, warp_views
from worldstereo_jax.sampling.world import Cameras, RolloutConfig, World, WorldMemory, same_camera

# Log-weight of a latent pixel on which no stored view falls: the filled-in guess stays readable
# at the model's entry, while any true observation outweighs it.
UNSEEN_LOG_WEIGHT = -6.0


@struct.dataclass
class Conditions:
    """Everything the model is told about one clip; a leading batch axis is added by `vmap`.

    Attributes:
        w2c: target cameras [f, 4, 4], world to camera.
        intrinsics: target intrinsics [f, 3, 3] in pixels.
        first_latent: latent of the clip's first frame [lh, lw, 16].
        render_mask: holes of the point render [f, h, w] (1 = hole, frame 0 all 0).
        render_latent: latent of the point render, holes mid-grey [f, lh, lw, 16].
        render_filled_latent: the same with its holes filled from around them.
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
        global_enabled: bool [], False removes the global-geometric memory.
        stereo_enabled: bool [], False removes the spatial-stereo memory.
    """

    w2c: jax.Array
    intrinsics: jax.Array
    first_latent: jax.Array
    render_mask: jax.Array
    render_latent: jax.Array
    render_filled_latent: jax.Array
    reference_latent: jax.Array
    reference_index: jax.Array
    reference_w2c: jax.Array
    reference_valid: jax.Array
    warped_features: jax.Array
    warped_log_weight: jax.Array
    target_geometry: TokenGeometry
    reference_geometry: TokenGeometry
    global_enabled: jax.Array
    stereo_enabled: jax.Array


@struct.dataclass
class Guidance:
    """The pixels behind `Conditions`, for pictures, depth completion and inspection.

    Attributes:
        render_image: point render [f, h, w, 3]; frame 0 is the input image.
        render_mask: its holes [f, h, w], 1 = hole.
        warped_image: warp of the stereo bank with holes filled [f, h, w, 3].
        warped_mask: holes before filling [f, h, w], 1 = hole.
        depth: depth known from the memories [f, h, w], 0 where neither knows it.
    """

    render_image: jax.Array
    render_mask: jax.Array
    warped_image: jax.Array
    warped_mask: jax.Array
    depth: jax.Array
