"""Noise schedules: which noise levels a sampler visits and what time the network is told.

Flow matching mixes data and noise as x = (1 - sigma) x0 + sigma noise, sigma from 1 (noise) to 0
(data). A schedule lists the sigmas a solver steps through and the timestep in 0..1000 that the
network receives at each. Schedules are computed on the host in numpy; a sampler bakes its own in
(`loop.make_sampler`) or takes the steps' numbers as an argument (`loop.step_table`).
"""

import dataclasses
from typing import TypeVar

import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.errors import InputError

TRAIN_TIMESTEPS = 1000
Levels = TypeVar("Levels", Array, ndarray)


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Noise levels of one sampling run; hashable by value, so it can be a static jit argument.

    timesteps: float32 [n], what the network receives at each of the n steps, 0..1000.
    sigmas: float32 [n + 1], strictly falling noise levels in (0, 1], then a last one >= 0: step i
        goes from sigmas[i] to sigmas[i + 1].

    Raises InputError when the lengths do not fit or the sigmas do not fall.
    """

    timesteps: Float[ndarray, "n"]
    sigmas: Float[ndarray, "n_plus_1"]

    def __post_init__(self) -> None:
        if len(self.timesteps) < 1 or len(self.sigmas) != len(self.timesteps) + 1:
            raise InputError(
                f"a schedule of {len(self.timesteps)} timesteps needs at least one timestep and "
                f"one sigma more than timesteps, not {len(self.sigmas)}"
            )
        if not np.all(np.diff(self.sigmas) < 0) or self.sigmas[-1] < 0 or self.sigmas[0] > 1:
            raise InputError("a schedule's sigmas must fall strictly within 0..1")
        self.timesteps.setflags(write=False)
        self.sigmas.setflags(write=False)

    @property
    def steps(self) -> int:
        """The number of network evaluations."""
        return len(self.timesteps)

    def _key(self) -> tuple[bytes, bytes]:
        return self.timesteps.tobytes(), self.sigmas.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def shift_sigmas(sigmas: Levels, shift: float | int) -> Levels:
    """Move noise levels of any shape towards noise: shift s / (1 + (shift - 1) s); 0 and 1 stay."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def unipc_schedule(steps: int, shift: float | int = 3.0) -> Schedule:
    """Return the official schedule of the full sampler (UniPC of diffusers 0.36.0, flow sigmas).

    s runs over linspace(0, 0.999, steps + 1) reversed without its final 0, computed as
    1 - linspace(1, 1/1000, steps + 1) in float64; sigma is the shifted s and the network receives
    int(1000 sigma), truncated in float64; sigmas are then rounded to float32 and a 0 is appended.

    Raises InputError when `steps` < 1 or `shift` <= 0.
    """
    _check(steps, shift)
    grid = 1.0 - np.linspace(1.0, 1.0 / TRAIN_TIMESTEPS, steps + 1)
    sigmas = shift_sigmas(grid, shift)[:0:-1]
    timesteps = (sigmas * TRAIN_TIMESTEPS).astype(np.int64).astype(np.float32)
    return Schedule(timesteps, np.append(sigmas, 0.0).astype(np.float32))


def flow_schedule(steps: int, shift: float | int = 1.0) -> Schedule:
    """Return the plain flow schedule: s evenly from 1 down to 0, shifted; timestep 1000 sigma.

    Raises InputError when `steps` < 1 or `shift` <= 0.
    """
    _check(steps, shift)
    sigmas = shift_sigmas(np.linspace(1.0, 0.0, steps + 1), shift)
    timesteps = (sigmas[:-1] * TRAIN_TIMESTEPS).astype(np.float32)
    return Schedule(timesteps, sigmas.astype(np.float32))


def dmd_schedule(
    steps: int = 4, start: float | int = 250, end: float | int = 1000, shift: float | int = 5.0
) -> Schedule:
    """Return the schedule of the distilled few-step model.

    t = linspace(start, end, steps) reversed / end, shifted, times `end`, not truncated;
    sigma = t / end and the last sigma is 0. In float32, as the official code computes it.

    Raises InputError when `steps` < 1, `shift` <= 0 or not 0 < start <= end.
    """
    _check(steps, shift)
    if not 0 < start <= end or (steps > 1 and start == end):
        raise InputError(f"start must lie in (0, end), not start {start} with end {end}")
    grid = (np.linspace(start, end, steps)[::-1] if steps > 1 else np.array([end])) / end
    timesteps = (shift_sigmas(grid, shift) * end).astype(np.float32)
    sigmas = np.append(timesteps / np.float32(end), 0.0).astype(np.float32)
    return Schedule(timesteps, sigmas)


def _check(steps: int, shift: float | int) -> None:
    if steps < 1:
        raise InputError(f"steps must be at least 1, not {steps}")
    if not shift > 0:
        raise InputError(f"shift must be positive, not {shift}")
