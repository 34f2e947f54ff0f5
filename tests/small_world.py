"""A world of a few thousand random parameters, for tests of the rollout and its training."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.compat import quick_compiler_options
from tests.models.small_model import random_params
from worldstereo_jax.config import ControlConfig, ModelConfig
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.models.depth_tiny import TinyDepth, TinyDepthConfig
from worldstereo_jax.models.vae_tiny import TinyVae, TinyVaeConfig
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling.conditions import Conditions, Guidance, gather_conditions
from worldstereo_jax.sampling.denoise import denoise
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    World,
    WorldMemory,
    WorldParams,
    init_memory,
    remember_frames,
)

ROLLOUT = RolloutConfig(
    frames=4,
    height=48,
    width=64,
    references=2,
    warp_views=2,
    keyframes=2,
    bank_capacity=5,
    point_capacity=8192,
    entry_capacity=8192,
    entry_tokens=24,
    steps=2,
)
MODEL = ModelConfig(
    width=24,
    num_layers=2,
    num_heads=2,
    ffn_width=32,
    text_dim=8,
    freq_dim=16,
    control=ControlConfig(
        width=16, ffn_width=16, num_heads=2, num_layers=1, embed_width=24, mid_channels=16
    ),
    warped_width=17,
    entry_width=90,
)
WORLD = World(
    name="test",
    rollout=ROLLOUT,
    denoiser=WorldStereo(MODEL),
    vae=TinyVae(TinyVaeConfig(encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8))),
    depth=TinyDepth(TinyDepthConfig(widths=(8, 8, 8, 8))),
)


def _drawn(module: nn.Module, seed: int):
    """Parameters as a network of convolutions begins with; made without compiling anything."""
    random = np.random.default_rng(seed)
    image = jax.ShapeDtypeStruct((1, ROLLOUT.height, ROLLOUT.width, 3), "float32")

    def drawn(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name != "kernel":
            return np.full(leaf.shape, name == "scale", np.float32)
        return random.standard_normal(leaf.shape, np.float32) / np.prod(leaf.shape[:-1]) ** 0.5

    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    return jax.device_put(jax.tree_util.tree_map_with_path(drawn, shapes))


@functools.cache
def params() -> WorldParams:
    return WorldParams(
        denoiser=random_params(MODEL),
        vae=_drawn(WORLD.vae, 2),
        depth=_drawn(WORLD.depth, 3),
    )


@functools.cache
def scene() -> dict[str, jax.Array]:
    clips = SceneClips(range(7, 8), frames=ROLLOUT.frames, height=48, width=64)
    return {name: jax.device_put(value) for name, value in clips[0].items()}


@functools.cache
def memory() -> WorldMemory:
    item = scene()
    names = ("image", "depth", "w2c", "intrinsics")
    return init_memory(ROLLOUT, *(item[name][0] for name in names))


def cameras() -> Cameras:
    return Cameras(w2c=scene()["w2c"], intrinsics=scene()["intrinsics"])


def revisit() -> Cameras:
    """The path back, of the second clip."""
    return Cameras(w2c=scene()["revisit_w2c"], intrinsics=scene()["revisit_intrinsics"])


@functools.cache
def grown() -> WorldMemory:
    """The memory after the frames of the first clip that enter it, as they truly are."""
    chosen = keyframe_indices(ROLLOUT.frames, ROLLOUT.keyframes)
    names = ("image", "depth", "w2c", "intrinsics")
    image, depth, w2c, intrinsics = (np.asarray(scene()[name])[chosen] for name in names)
    path = Cameras(w2c=jnp.asarray(w2c), intrinsics=jnp.asarray(intrinsics))
    return remember_frames(
        ROLLOUT, memory(), jnp.asarray(image), jnp.asarray(depth), path, source=1
    )


@functools.cache
def gather() -> Callable[[WorldMemory, Cameras], tuple[Conditions, Guidance]]:
    """What memories say of a path: the same program as in `compile_rollout`, for all tests."""
    read = jax.jit(gather_conditions, static_argnums=0)
    lowered = read.lower(WORLD, params().vae, memory(), cameras())
    return functools.partial(lowered.compile(quick_compiler_options()), params().vae)


@functools.cache
def gathered() -> tuple[Conditions, Guidance]:
    """What the memory of the first frame says of the scene's path."""
    return gather()(memory(), cameras())


@jax.jit
def denoised(x: jax.Array, timestep: jax.Array, batch: Conditions) -> jax.Array:
    """The denoiser's output under conditions with a batch axis."""
    return denoise(WORLD.denoiser, params().denoiser, x, timestep, batch)
