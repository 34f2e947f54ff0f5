"""From a procedural scene to training clips: what the memories would have said, and the truth.

Each scene gives two clips through one memory, as the rollout makes them: the first starts from
one image, the second revisits with keyframes of the first in the bank. The frames that enter the
bank are true ones made a little worse (autoencoded, blurred, shifted in colour, with depth that is
wrong where the first image did not know it), since at sampling time they are generated ones.
"""

import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.compat import quick_compiler_options
from worldstereo_jax.array_types import Array, Float, Key, PyTree, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.models.vae_tiny import decode_frames, encode_frames
from worldstereo_jax.sampling.conditions import Conditions, Guidance, gather_conditions
from worldstereo_jax.sampling.world import (
    Cameras,
    World,
    WorldMemory,
    generated_confidence,
    init_memory,
    remember_frames,
)

# Strengths of the damage, as standard deviations or largest values.
BLUR = 0.7
COLOUR_SHIFT = 0.03
CONTRAST = 0.05
DEPTH_ERROR = 0.12


def smooth_noise(
    key: Key[Array, ""], frames: int, height: int, width: int, cells: int = 3
) -> Float[Array, "f h w"]:
    """Unit-variance noise that varies over about a third of the image."""
    coarse = jax.random.normal(key, (frames, cells, cells + 1))
    return jax.image.resize(coarse, (frames, height, width), "cubic")


def blur(image: Float[Array, "f h w c"], amount: Float[Array, ""]) -> Float[Array, "f h w c"]:
    """Mix an image with its 3x3 binomial blur; `amount` 0 leaves it, 1 replaces it."""
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    smooth = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    return (1 - amount) * image + amount * smooth


def imitate_generated(
    world: World,
    vae_params: PyTree,
    image: Float[Array, "f h w 3"],
    depth: Float[Array, "f h w"],
    known: Float[Array, "f h w"],
    key: Key[Array, ""],
) -> tuple[Float[Array, "f h w 3"], Float[Array, "f h w"]]:
    """True frames made to look like generated ones.

    Args:
        world: networks and sizes.
        vae_params: parameters of its VAE.
        image: true frames in [-1, 1].
        depth: their true depth.
        known: depth that the memories already know, 0 elsewhere.
        key: random key of the damage.

    Returns:
        Frames and depth as a rollout would hand them to `remember`.
    """
    blur_key, colour_key, contrast_key, depth_key, size_key = jax.random.split(key, 5)
    frames, height, width = depth.shape
    latent = encode_frames(world.vae, vae_params, image[None])
    image = decode_frames(world.vae, vae_params, latent)[0]
    image = blur(image, BLUR * jax.random.uniform(blur_key))
    shift = COLOUR_SHIFT * jax.random.normal(colour_key, (1, 1, 1, 3))
    contrast = 1 + CONTRAST * jax.random.normal(contrast_key)
    image = (image * contrast + shift).clip(-1, 1)
    error = DEPTH_ERROR * jax.random.uniform(size_key)
    wrong = depth * jnp.exp(error * smooth_noise(depth_key, frames, height, width))
    return image, jnp.where(known > 0, known, wrong)


_damage = jax.jit(imitate_generated, static_argnums=0)
_encode = jax.jit(encode_frames, static_argnums=0)


@functools.cache
def _gather() -> Callable[..., tuple[Conditions, Guidance]]:
    """`gather_conditions` compiled as `compile_rollout` does; a device is asked for first here."""
    options = quick_compiler_options()
    return jax.jit(gather_conditions, static_argnums=0, compiler_options=options)


def prepare_pair(
    world: World, vae_params: PyTree, scene: Mapping[str, Array | ndarray], key: Key[Array, ""]
) -> tuple[tuple[Conditions, Array], tuple[Conditions, Array]]:
    """Both clips of one scene as (conditions, target latent) pairs.

    For plain Python: its stages are programs of their own, which both clips share.

    Args:
        world: networks and sizes.
        vae_params: parameters of its VAE.
        scene: an item of `SceneClips`.
        key: random key of the damage done to frames that enter the bank.

    Returns:
        The clip from one image, and the revisiting clip; target latents [f, lh, lw, 16].
    """
    scene = {name: jnp.asarray(value) for name, value in scene.items()}
    first = Cameras(w2c=scene["w2c"], intrinsics=scene["intrinsics"])
    second = Cameras(w2c=scene["revisit_w2c"], intrinsics=scene["revisit_intrinsics"])
    memory = init_memory(
        world.rollout,
        scene["image"][0],
        scene["depth"][0],
        scene["w2c"][0],
        scene["intrinsics"][0],
    )
    conditions, guidance = _gather()(world, vae_params, memory, first)

    true = scene["image"], scene["depth"]
    memory = _remember_made(world, vae_params, memory, *true, guidance, first, 1, key)
    revisit_conditions, _ = _gather()(world, vae_params, memory, second)

    videos = jnp.stack([scene["image"], scene["revisit_image"]])
    target, revisit_target = _encode(world.vae, vae_params, videos)
    return (conditions, target), (revisit_conditions, revisit_target)


def _remember_made(
    world: World,
    vae_params: PyTree,
    memory: WorldMemory,
    image: Float[Array, "f h w 3"],
    depth: Float[Array, "f h w"],
    guidance: Guidance,
    cameras: Cameras,
    source: int,
    key: Key[Array, ""],
) -> WorldMemory:
    """The memory after a clip's keyframes, damaged and as sure as a rollout's would be.

    Args:
        world, vae_params: as in `prepare_pair`.
        memory: before the clip.
        image, depth: the true clip.
        guidance: what the memory said of its path.
        cameras: its path.
        source: number of the clip.
        key: of the damage.
    """
    sizes = world.rollout
    chosen = jnp.asarray(keyframe_indices(sizes.frames, sizes.keyframes))
    true = image[chosen], depth[chosen]
    image, depth = _damage(world, vae_params, *true, guidance.depth[chosen], key)
    cameras = Cameras(w2c=cameras.w2c[chosen], intrinsics=cameras.intrinsics[chosen])
    inherited = guidance.confidence[chosen]
    sure = generated_confidence(depth, cameras, inherited)
    return remember_frames(
        sizes, memory, image, depth, cameras, source, confidence=sure, inherited=inherited
    )


def long_world_clips(
    world: World, vae_params: PyTree, *, first: int
) -> Callable[[Mapping[str, Array | ndarray], Array], Iterator[tuple[Conditions, Array]]]:
    """A function that makes training clips of long worlds, whose bank outgrows what is read of it.

    All paths of a world go through one memory, one after the other, as in `prepare_pair`.

    Args:
        world: networks and sizes.
        vae_params: parameters of its VAE.
        first: number of the first path of a world that becomes a training clip; those before it
            only fill the memory.

    Returns:
        `clips(scene, key)`, an iterator of (conditions, target latent) pairs, for an item of
        `LongWorlds` and the key of the damage done to frames that enter the bank.
    """
    sizes = world.rollout

    def clips(
        scene: Mapping[str, Array | ndarray], key: Array
    ) -> Iterator[tuple[Conditions, Array]]:
        names = ("image", "depth", "w2c", "intrinsics")
        memory = init_memory(sizes, *(jnp.asarray(scene[name][0, 0]) for name in names))
        for path in range(len(scene["image"])):
            image, depth, w2c, intrinsics = (jnp.asarray(scene[name][path]) for name in names)
            cameras = Cameras(w2c=w2c, intrinsics=intrinsics)
            conditions, guidance = _gather()(world, vae_params, memory, cameras)
            if path >= first:
                yield conditions, _encode(world.vae, vae_params, image[None])[0]
            key_here = jax.random.fold_in(key, path)
            memory = _remember_made(
                world, vae_params, memory, image, depth, guidance, cameras, path + 1, key_here
            )

    return clips


def to_fields(conditions: Conditions, target: Array) -> dict[str, np.ndarray]:
    """One clip as flat named arrays; bulky ones (latents and masks) in half precision."""
    fields = {"target": np.asarray(target, np.float16)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(conditions):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        array = np.asarray(leaf)
        is_bulky = array.dtype == np.float32 and array.size > 20_000
        fields[name] = array.astype(np.float16) if is_bulky else array
    return fields


def from_fields(
    fields: Mapping[str, Array | ndarray], example: Conditions
) -> tuple[Conditions, Array]:
    """Inverse of `to_fields`, for one clip or a batch; `example` gives the tree's structure.

    Raises InputError for clips that lack a field: they were prepared before the model read it.
    """

    def restore(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name not in fields:
            raise InputError(f"prepared clips have no field {name!r}: build their cache again")
        return jnp.asarray(fields[name]).astype(leaf.dtype)

    conditions = jax.tree_util.tree_map_with_path(restore, example)
    return conditions, jnp.asarray(fields["target"]).astype(jnp.float32)
