import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.entry_update import EntryRule
from worldstereo_jax.memory.spatial_stereo import keyframes_at
from worldstereo_jax.sampling import world
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    empty_memory,
    init_memory,
    remember,
    remember_frames,
)

CONFIG = RolloutConfig(height=16, width=32, bank_capacity=2, point_capacity=600, entry_capacity=600)
LENS = np.array([[30.0, 0, 16], [0, 30.0, 8], [0, 0, 1]], np.float32)
FRAME = {
    "image": np.linspace(-1, 1, 16 * 32 * 3, dtype=np.float32).reshape(16, 32, 3),
    "depth": np.full((16, 32), 2.0, np.float32),
    "w2c": np.eye(4, dtype=np.float32),
    "intrinsics": LENS,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", 127.5 * (FRAME["image"] + 1)),
        ("image", FRAME["image"][:, :16]),
        ("depth", -FRAME["depth"]),
        ("depth", FRAME["depth"][..., None]),
        ("w2c", 2 * FRAME["w2c"]),
        ("intrinsics", 0 * LENS),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_memory_begun_from_bad_input_says_which_argument_is_at_fault(name, value):
    with pytest.raises(InputError, match=rf"^{name} must [^\n]*$"):
        init_memory(CONFIG, **(FRAME | {name: value}))


@pytest.mark.usefixtures("unchecked")
def test_frames_to_remember_must_be_as_many_as_their_cameras():
    cameras = Cameras(w2c=FRAME["w2c"][None], intrinsics=LENS)
    frames = FRAME["image"][None], FRAME["depth"][None]
    with pytest.raises(InputError, match=r"intrinsics must have shape \[1, 3, 3\], got \[3, 3\]"):
        remember(CONFIG, empty_memory(CONFIG), *frames, cameras, 0)
    with pytest.raises(InputError, match=r"intrinsics must have shape \[1, 3, 3\], got \[3, 3\]"):
        remember_frames(CONFIG, empty_memory(CONFIG), *frames, cameras, 0)
    cameras = Cameras(w2c=FRAME["w2c"][None], intrinsics=LENS[None])
    with pytest.raises(InputError, match=r"image must lie in \[-1, 1\]"):
        remember_frames(CONFIG, empty_memory(CONFIG), 100 * frames[0], frames[1], cameras, 0)
    for inherited, said in (
        (frames[1][0], r"inherited must have shape \[1, 16, 32\], got \[16, 32\]"),
        (frames[1], "inherited must hold confidences between 0 and 1"),
    ):
        with pytest.raises(InputError, match=said):
            remember_frames(
                CONFIG, empty_memory(CONFIG), *frames, cameras, 0, inherited=jnp.asarray(inherited)
            )


def test_what_was_not_told_of_frames_lies_where_their_depth_does():
    """Else the program that remembers would be compiled once more for frames of which it was."""
    image, depth, cameras = jax.device_put(
        (FRAME["image"][None], FRAME["depth"][None], Cameras(FRAME["w2c"][None], LENS[None])),
        jax.devices()[1],
    )
    told = world._told_frames(empty_memory(CONFIG), image, depth, cameras, None, None)
    assert all(
        array.committed and array.sharding == depth.sharding for array in jax.tree.leaves(told)
    )


@pytest.mark.parametrize(
    "wrong",
    [{"references": 0}, {"warp_views": 0}, {"frames": 1}, {"keyframes": 0}, {"candidates": -1}],
)
def test_sizes_that_no_clip_can_have_are_refused(wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} must be"):
        RolloutConfig(**wrong)


@pytest.mark.row("S6")
@pytest.mark.row("S12")
def test_depth_that_was_read_is_stored_as_such_and_teaches_entries_nothing():
    config = dataclasses.replace(CONFIG, entry_rule=EntryRule(stride=2))
    begun = init_memory(config, **FRAME)
    # The rule is heard: every second pixel, row by row.
    assert int(begun.entries.count) == 8 * 16
    image, depth = (jnp.asarray(FRAME[name])[None] for name in ("image", "depth"))
    cameras = Cameras(w2c=jnp.eye(4)[None], intrinsics=jnp.asarray(LENS)[None])
    inherited = jnp.zeros((1, 16, 32)).at[:, :, 16:].set(0.4)
    grown = remember_frames(config, begun, image, depth, cameras, 1, inherited=inherited)
    np.testing.assert_array_equal(grown.stereo.measured[1], inherited[0] == 0)
    before, after = np.asarray(grown.stereo.confidence[:2])
    np.testing.assert_array_equal(after[:, :16], before[:, :16])
    np.testing.assert_allclose(after[:, 16:], np.minimum(before[:, 16:], 0.4))
    old, new = (np.asarray(x.entries.support)[: 8 * 16].reshape(8, 16) for x in (begun, grown))
    np.testing.assert_array_equal(new[:, 8:], old[:, 8:])
    np.testing.assert_allclose(new[:, :8], 2 * old[:, :8], rtol=1e-5)
    assert (np.asarray(grown.entries.views)[: 8 * 16, 0] == 0b11).all()


@pytest.mark.row("S38")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_views_are_told_apart_in_any_unit(scale):
    memory, bits = empty_memory(dataclasses.replace(CONFIG, bank_capacity=4)), 0
    for number in range(3):
        w2c = jnp.eye(4).at[0, 3].set(0.08 * number * scale)
        image, depth = (jnp.asarray(FRAME[name])[None] for name in ("image", "depth"))
        cameras = Cameras(w2c=w2c[None], intrinsics=jnp.asarray(LENS)[None])
        for _ in range(2):
            memory = remember_frames(CONFIG, memory, image, scale * depth, cameras, 0)
        bits |= 1 << number
    assert int(memory.stereo.count) == 3
    seen = np.bitwise_or.reduce(np.asarray(memory.entries.views)[np.asarray(memory.entries.valid)])
    assert seen.view(np.uint32)[0] == bits
    at = keyframes_at(memory.stereo, w2c, jnp.asarray(LENS))
    np.testing.assert_array_equal(at, [False, False, True, False])
    # Without depth the world's unit is all there is: a rounded path still starts at its view.
    blind = memory.stereo.replace(depth=jnp.zeros_like(memory.stereo.depth))
    rounded = w2c.at[0, 3].add(5e-5)
    np.testing.assert_array_equal(keyframes_at(blind, rounded, jnp.asarray(LENS))[2], True)
    zoomed = jnp.diag(jnp.array([2.0, 2.0, 1.0])) @ LENS
    assert not keyframes_at(memory.stereo, w2c, zoomed).any()
