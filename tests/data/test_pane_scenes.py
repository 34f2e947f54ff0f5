import numpy as np
import pytest

from worldstereo_jax.data.pane_scenes import PANE_DEPTH, WALL_DEPTH, make_pane_scene, render_pane
from worldstereo_jax.errors import InputError

HEIGHT, WIDTH = 32, 48
K = np.array([[42.0, 0, WIDTH / 2], [0, 42.0, HEIGHT / 2], [0, 0, 1]])


def rendered(scene):
    w2c = np.tile(np.eye(4), (2, 1, 1))
    w2c[1, 0, 3] = -0.3
    return render_pane(scene, w2c, np.stack([K, K]), height=HEIGHT, width=WIDTH)


@pytest.mark.row("S24")
def test_two_surfaces_mix_on_one_ray():
    scene = make_pane_scene(0)
    views = rendered(scene)
    assert 0.1 < views.through.mean() < 0.6
    np.testing.assert_allclose(views.depth[views.through], PANE_DEPTH, atol=1e-5)
    np.testing.assert_allclose(views.behind, WALL_DEPTH, atol=1e-5)
    alone = [
        rendered(type(scene)(waves=scene.waves, tint=scene.tint, opacity=share)).image
        for share in (0.0, 1.0)
    ]
    mixed = (1 - scene.opacity) * alone[0] + scene.opacity * alone[1]
    np.testing.assert_allclose(views.image, mixed, atol=2e-3)
    # Each surface moves by its own parallax: neither explains the pane's region alone.
    told = views.alternating()
    np.testing.assert_array_equal(told[0], views.depth[0])
    np.testing.assert_array_equal(told[1], views.behind[1])


def test_scenes_follow_from_their_seed():
    one, again, other = make_pane_scene(5), make_pane_scene(5), make_pane_scene(6)
    np.testing.assert_array_equal(one.waves, again.waves)
    assert (one.waves != other.waves).any()
    with pytest.raises(InputError, match="negative"):
        make_pane_scene(-1)
