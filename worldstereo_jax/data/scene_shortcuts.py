"""Views of a scene that are known to belong to a trajectory, from the names of both.

The official retrieval adds 1 to the score of one stored view where the scene's layout tells that
it was made for the trajectory at hand. That is knowledge of a scene folder, not of a memory.
"""

from collections.abc import Mapping

import numpy as np

from worldstereo_jax.array_types import Float, Int, ndarray

_LATER_FRAMES = frozenset(range(1, 1000)) - {4, 8, 12, 16}
_VIEW_FRAMES = frozenset((1, 2, 3, 5, 7, 9, 13, 17))


def belonging_bonus(
    view: str,
    trajectory: str,
    clips: Mapping[tuple[str, str], int],
    source: Int[ndarray, "v"],
    frames: int,
) -> Float[ndarray, "t v"]:
    """What the official retrieval adds to the scores of target frames 1.. and stored views.

    target*, wonder*: trajectories after traj0 are led along traj0 of the same view. view*: traj0
    along traj2, traj1 along its first half.

    Args:
        view, trajectory: the one to be made.
        clips: number of each clip made so far, by view and trajectory.
        source: number of the clip that each stored view comes from; -1 for an empty place.
        frames: target frames of the clip, the first included.

    Returns:
        1 for one stored view in some rows, else 0; row i - 1 is of target frame i.
    """
    bonus = np.zeros((frames - 1, len(source)), np.float32)
    wanted, share, rows = None, 1.0, _LATER_FRAMES
    if view.startswith(("target", "wonder")) and trajectory != "traj0":
        wanted = "traj0"
    elif view.startswith("view") and trajectory in ("traj0", "traj1"):
        wanted, rows = "traj2", _VIEW_FRAMES
        share = 0.5 if trajectory == "traj1" else 1.0
    if wanted is None or (view, wanted) not in clips:
        return bonus
    stored = np.flatnonzero(source == clips[view, wanted])
    guides = stored[: int(len(stored) * share)][3::2]
    for frame in sorted(rows & set(range(1, frames))) if len(guides) else []:
        bonus[frame - 1, guides[int(frame / frames * len(guides))]] = 1.0
    return bonus
