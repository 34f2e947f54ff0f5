"""From noise to a clip: schedules, solvers, guidance, the denoising loop and the rollout."""

from worldstereo_jax.sampling.guidance import guide_one_batch, guide_two_pass
from worldstereo_jax.sampling.loop import make_sampler, sample
from worldstereo_jax.sampling.prediction import (
    add_noise,
    anchored_source,
    anchored_target,
    anchored_velocity,
    flow_target,
    flow_x0,
)
from worldstereo_jax.sampling.rollout import Clip, make_rollout
from worldstereo_jax.sampling.schedules import (
    Schedule,
    dmd_schedule,
    flow_schedule,
    unipc_schedule,
)
from worldstereo_jax.sampling.solvers import Solver, dmd, euler, unipc
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    World,
    WorldMemory,
    WorldParams,
    init_memory,
    remember_frames,
)

__all__ = [
    "Cameras",
    "Clip",
    "RolloutConfig",
    "Schedule",
    "Solver",
    "World",
    "WorldMemory",
    "WorldParams",
    "add_noise",
    "anchored_source",
    "anchored_target",
    "anchored_velocity",
    "dmd",
    "dmd_schedule",
    "euler",
    "flow_schedule",
    "flow_target",
    "flow_x0",
    "guide_one_batch",
    "guide_two_pass",
    "init_memory",
    "make_rollout",
    "make_sampler",
    "remember_frames",
    "sample",
    "unipc",
    "unipc_schedule",
]
