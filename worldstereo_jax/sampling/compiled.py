"""A rollout compiled ahead of its first clip, its stages side by side on the cores there are.

`make_rollout` is one program: right for a notebook and inside other programs, but a compiler works
on one program mostly by one core. A command that makes one or two clips spends most of its time
waiting for it, so it compiles the three stages apart, at once, and while it reads its input.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.compat import quick_compiler_options, quickest_compiler_options
from worldstereo_jax.array_types import Array, PyTree
from worldstereo_jax.sampling.conditions import Conditions, Guidance, gather_conditions
from worldstereo_jax.sampling.rollout import Clip, complete_depth, generate_clip, keyframes_of
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    World,
    WorldMemory,
    WorldParams,
    empty_memory,
    generated_confidence,
    next_clip,
    remember_frames,
)

# One of each for all rollouts, so that a second one of the same world is not traced again.
_gather = jax.jit(gather_conditions, static_argnums=0)
_generate = jax.jit(generate_clip, static_argnums=0, static_argnames="on_step")
_complete = jax.jit(complete_depth, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class CompiledRollout:
    """The compiled stages of a clip.

    Attributes:
        config: sizes they were compiled for.
        gather_conditions, generate_clip, complete_depth: the programs.
    """

    config: RolloutConfig
    gather_conditions: Callable[..., Any]
    generate_clip: Callable[..., Any]
    complete_depth: Callable[..., Any]

    def __call__(
        self, params: WorldParams, memory: WorldMemory, cameras: Cameras, key: Array
    ) -> tuple[Clip, WorldMemory]:
        """One clip and the memory after it, as `make_rollout` makes them."""
        gathered = self.gather(params, memory, cameras)
        clip = self.clip(params, gathered, cameras, key)
        return clip, self.remember(memory, clip)

    def gather(
        self, params: WorldParams, memory: WorldMemory, cameras: Cameras
    ) -> tuple[Conditions, Guidance]:
        """What both memories say of a path, read once for all clips that are made from it."""
        return self.gather_conditions(params.vae, memory, cameras)

    def clip(
        self,
        params: WorldParams,
        gathered: tuple[Conditions, Guidance],
        cameras: Cameras,
        key: Array,
    ) -> Clip:
        """One clip.

        Args:
            params, cameras, key: of the shapes that were compiled for.
            gathered: from `gather`, for the same cameras; the conditions may be altered, for
                instance by `without_stereo`.
        """
        conditions, guidance = gathered
        video = self.generate_clip(params, conditions, guidance, key)
        depth = self.complete_depth(params, video, guidance.depth)
        return Clip(video, depth, cameras, guidance, inherited=guidance.confidence)

    def remember(self, memory: WorldMemory, clip: Clip) -> WorldMemory:
        """The memory after a clip, as `write_back` leaves it."""
        number = next_clip(memory)
        images, depth, cameras, inherited = keyframes_of(self.config, clip)
        sure = generated_confidence(depth, cameras, inherited)
        return remember_frames(
            self.config,
            memory,
            images,
            depth,
            cameras,
            number,
            confidence=sure,
            inherited=inherited,
        )


def compile_rollout(
    world: World, params: PyTree, *, on_step: Callable[[int], None] | None = None
) -> CompiledRollout:
    """Compile a world's rollout for its memory and paths of its length.

    Args:
        world: networks and sizes; memories must have the sizes of `empty_memory`.
        params: its `WorldParams`, or their shapes and types.
        on_step: called on the host with the index of each finished denoising step.
    """
    config = world.rollout
    memory = jax.eval_shape(lambda: empty_memory(config))

    def path() -> Cameras:
        frames = config.frames
        return Cameras(w2c=jnp.zeros((frames, 4, 4)), intrinsics=jnp.zeros((frames, 3, 3)))

    params = jax.eval_shape(lambda x: x, params)
    cameras = jax.eval_shape(path)
    video = jax.ShapeDtypeStruct((config.frames, config.height, config.width, 3), "float32")
    key = jax.eval_shape(lambda: jax.random.key(0))
    gathering = _gather.trace(world, params.vae, memory, cameras)
    conditions, guidance = gathering.out_info
    options, quickest = quick_compiler_options(), quickest_compiler_options()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        compiling = [pool.submit(lambda: gathering.lower().compile(options))]
        for traced in (
            _generate.trace(world, params, conditions, guidance, key, on_step=on_step),
            _complete.trace(world, params, video, guidance.depth),
        ):
            compiling.append(pool.submit(lambda traced=traced: traced.lower().compile(quickest)))
        return CompiledRollout(config, *(program.result() for program in compiling))
