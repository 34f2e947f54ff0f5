"""Which stored views the official layout knows to belong to a trajectory."""

import numpy as np
import pytest

from worldstereo_jax.data.scene_shortcuts import belonging_bonus

# A bank of 3 views known from the start, then 8 of each of two clips, then two empty places.
SOURCE = np.array([0] * 3 + [3] * 8 + [11] * 8 + [-1] * 2)


def rows(bonus):
    assert set(np.unique(bonus)) <= {0.0, 1.0}
    assert bonus.sum(1).max() <= 1
    return {int(i) + 1: int(row.argmax()) for i, row in enumerate(bonus) if row.any()}


def test_a_target_is_led_by_its_first_trajectory():
    """Every third of its entries, the first third of the frames by the first of them."""
    clips = {("target1", "traj0"): 3, ("target2", "traj0"): 11}
    found = rows(belonging_bonus("target1", "traj1", clips, SOURCE, 21))
    assert sorted(found) == [i for i in range(1, 21) if i not in (4, 8, 12, 16)]
    # Entries 3, 5 and 7 of the clip, which begin at place 3.
    guides = [6, 8, 10]
    assert found == {i: guides[int(i / 21 * 3)] for i in found}
    wonder = belonging_bonus("wonder", "traj2", {("wonder", "traj0"): 11}, SOURCE, 21)
    assert set(rows(wonder).values()) == {14, 16, 18}


def test_a_view_is_led_by_its_third_trajectory():
    clips = {("view0", "traj2"): 11}
    first = rows(belonging_bonus("view0", "traj0", clips, SOURCE, 21))
    assert sorted(first) == [1, 2, 3, 5, 7, 9, 13, 17]
    assert set(first.values()) == {14, 16, 18}
    second = rows(belonging_bonus("view0", "traj1", clips, SOURCE, 21))
    assert set(second.values()) == {14}
    assert sorted(second) == sorted(first)


@pytest.mark.parametrize(
    ("view", "trajectory"),
    [("view0", "traj2"), ("target1", "traj0"), ("reconstruct_0", "traj1"), ("view1", "traj0")],
)
def test_others_are_led_by_none(view, trajectory):
    clips = {("view0", "traj2"): 11, ("target1", "traj0"): 3}
    bonus = belonging_bonus(view, trajectory, clips, SOURCE, 21)
    assert bonus.shape == (20, len(SOURCE))
    assert not bonus.any()


def test_a_clip_with_few_entries_leads_none():
    clips = {("view0", "traj2"): 5}
    assert not belonging_bonus("view0", "traj0", clips, np.array([0, 5, 5, 5]), 21).any()
