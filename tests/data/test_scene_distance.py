import dataclasses

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.data.scene_distance import signed_distance
from worldstereo_jax.data.scene_layouts import make_scene


def _one_of_each():
    """A 10 m room with a turned box, a ball and a drum; the world frame is the room's."""
    scene = make_scene(0, "train")

    def only(values, like):
        return jnp.zeros_like(like).at[0].set(jnp.asarray(values, jnp.float32))

    return dataclasses.replace(
        scene,
        room_half=jnp.full(3, 5.0),
        room_from_world=jnp.eye(4),
        box_center=only([2.0, -1.0, 0.0], scene.box_center),
        box_half=only([0.5, 1.0, 0.25], scene.box_half),
        box_yaw=only(np.pi / 2, scene.box_yaw),
        sphere_center=only([-2.0, -1.0, 0.0], scene.sphere_center),
        sphere_radius=only(0.5, scene.sphere_radius),
        cylinder_center=only([0.0, -1.0, 2.0], scene.cylinder_center),
        cylinder_radius=only(0.5, scene.cylinder_radius),
        cylinder_half_height=only(1.0, scene.cylinder_half_height),
    )


def test_distances_by_hand():
    points = np.array(
        [
            [1.0, -1.0, 0.0],  # 1 m from the box's middle, whose x extent is 0.25 once turned
            [2.0, -1.0, 0.8],  # beyond its long side
            [2.0, -1.0, 0.0],  # inside it
            [-2.0, -2.0, 0.0],  # above the ball
            [-2.0, -1.0, 0.2],  # inside the ball
            [0.0, -3.0, 2.0],  # above the drum
            [0.8, -2.4, 2.0],  # off the drum's rim, 0.3 across and 0.4 up
            [0.0, -9.9, 0.0],  # under the ceiling
            [0.0, 0.5, 0.0],  # under the floor
        ]
    )
    expected = [0.75, 0.3, -0.25, 0.5, -0.3, 1.0, 0.5, 0.1, -0.5]
    np.testing.assert_allclose(signed_distance(_one_of_each(), points), expected, atol=1e-6)


def test_points_are_taken_in_the_world_frame():
    scene = _one_of_each()
    shift = np.eye(4, dtype=np.float32)
    shift[:3, 3] = [-2.0, -2.0, 0.0]
    moved = dataclasses.replace(scene, room_from_world=jnp.asarray(shift))
    np.testing.assert_allclose(signed_distance(moved, np.zeros((1, 3))), [0.5], atol=1e-6)
