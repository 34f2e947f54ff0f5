"""A rollout compiled ahead of its first clip, its stages side by side on the cores there are.

`make_rollout` is one program: right for a notebook and inside other programs, but a compiler works
on one program mostly by one core. A command that makes one or two clips spends most of its time
waiting for it, so it compiles the stages apart, at once, and while it reads its input.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.compat import quick_compiler_options, quickest_compiler_options
from worldstereo_jax.array_types import Array, PyTree
from worldstereo_jax.sampling.conditions import Conditions, Guidance, gather_conditions
from worldstereo_jax.sampling.loop import Step, advance, run_steps, step_table
from worldstereo_jax.sampling.rollout import (
    Clip,
    clip_schedule,
    clip_velocity,
    complete_depth,
    decode_clip,
    finish_clip,
    keyframes_of,
    noised_anchor,
)
from worldstereo_jax.sampling.solvers import euler
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


def _start(world: World, conditions: Conditions, key: Array) -> Any:
    return euler(clip_schedule(world)).init(noised_anchor(conditions, key))


def _proceed(
    world: World,
    params: WorldParams,
    conditions: Conditions,
    state: Any,
    table: Step,
    first: Array,
    last: Array,
) -> Any:
    velocity = clip_velocity(world, params, conditions)
    return advance(velocity, euler(clip_schedule(world)), state, table, first, last)


def _finish(
    world: World, params: WorldParams, conditions: Conditions, guidance: Guidance, latent: Array
) -> Array:
    return finish_clip(conditions, guidance, *decode_clip(world, params, conditions, latent))


# One of each for all rollouts, so that a second one of the same world is not traced again.
_GATHER = jax.jit(gather_conditions, static_argnums=0)
_START, _PROCEED, _FINISH = (jax.jit(f, static_argnums=0) for f in (_start, _proceed, _finish))
_COMPLETE = jax.jit(complete_depth, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class CompiledRollout:
    """The compiled stages of a clip.

    Attributes:
        config: sizes they were compiled for.
        on_step: called with the index of each finished denoising step.
        table: the schedule's steps, an argument of `proceed`, which serves any number of them.
        gather_conditions, start, proceed, finish, complete_depth: the programs. The steps are run
            from the host, since a program that calls back is not kept for the next command.
    """

    config: RolloutConfig
    on_step: Callable[[int], None] | None
    table: Step
    gather_conditions: Callable[..., Any]
    start: Callable[..., Any]
    proceed: Callable[..., Any]
    finish: Callable[..., Any]
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

        def proceed(state: Any, first: int, last: int) -> Any:
            span = np.int32(first), np.int32(last)
            return self.proceed(params, conditions, state, self.table, *span)

        state = run_steps(proceed, self.start(conditions, key), self.config.steps, self.on_step)
        video = self.finish(params, conditions, guidance, state.sample)
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
        sizes = (config.frames, 4, 4), (config.frames, 3, 3)
        return Cameras(*(jnp.zeros(size, jnp.float32) for size in sizes))

    params = jax.eval_shape(lambda x: x, params)
    cameras = jax.eval_shape(path)
    video = jax.ShapeDtypeStruct((config.frames, config.height, config.width, 3), "float32")
    key = jax.eval_shape(lambda: jax.random.key(0))
    schedule = clip_schedule(world)
    table = step_table(schedule, euler(schedule))
    gathering = _GATHER.trace(world, params.vae, memory, cameras)
    conditions, guidance = gathering.out_info
    starting = _START.trace(world, conditions, key)
    state, step = starting.out_info, jax.ShapeDtypeStruct((), "int32")
    options, quickest = quick_compiler_options(), quickest_compiler_options()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        compiling = [pool.submit(lambda: gathering.lower().compile(options))]
        for traced in (
            starting,
            _PROCEED.trace(world, params, conditions, state, table, step, step),
            _FINISH.trace(world, params, conditions, guidance, state.sample),
            _COMPLETE.trace(world, params, video, guidance.depth),
        ):
            compiling.append(pool.submit(lambda traced=traced: traced.lower().compile(quickest)))
        programs = (program.result() for program in compiling)
        return CompiledRollout(config, on_step, table, *programs)
