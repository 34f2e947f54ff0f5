"""From noise to a clip: noise schedules, ODE solvers, guidance and the denoising loop."""

from worldstereo_jax.sampling.guidance import guide_one_batch, guide_two_pass
from worldstereo_jax.sampling.loop import make_sampler, sample
from worldstereo_jax.sampling.prediction import (
    add_noise,
    anchored_target,
    anchored_velocity,
    flow_target,
    flow_velocity,
)
from worldstereo_jax.sampling.schedules import (
    Schedule,
    dmd_schedule,
    flow_schedule,
    unipc_schedule,
)
from worldstereo_jax.sampling.solvers import Solver, dmd, euler, unipc

__all__ = [
    "Schedule",
    "Solver",
    "add_noise",
    "anchored_target",
    "anchored_velocity",
    "dmd",
    "dmd_schedule",
    "euler",
    "flow_schedule",
    "flow_target",
    "flow_velocity",
    "guide_one_batch",
    "guide_two_pass",
    "make_sampler",
    "sample",
    "unipc",
    "unipc_schedule",
]
