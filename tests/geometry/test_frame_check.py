import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.frame_check import check_cameras, check_frame, check_values

H, W = 5, 7
GOOD = {
    "image": np.linspace(-1, 1, H * W * 3, dtype=np.float32).reshape(H, W, 3),
    "depth": np.full((H, W), 2.0, np.float32),
    "w2c": np.eye(4, dtype=np.float32),
    "intrinsics": np.array([[6.0, 0, 3.5], [0, 6.0, 2.5], [0, 0, 1]], np.float32),
}


def values_with(**changed):
    check_values(**(GOOD | changed))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", GOOD["image"].transpose(2, 0, 1)),
        ("image", GOOD["image"][None]),
        ("image", (127.5 * (GOOD["image"] + 1)).astype(np.uint8)),
        ("image", GOOD["image"].tolist()),
        ("depth", GOOD["depth"][..., None]),
        ("depth", GOOD["depth"][:, :3]),
        ("depth", (1000 * GOOD["depth"]).astype(np.uint16)),
        ("w2c", GOOD["w2c"][:3]),
        ("intrinsics", np.array([6.0, 6.0, 3.5, 2.5], np.float32)),
    ],
)
def test_an_array_of_wrong_shape_or_type_is_named_also_inside_jit(name, value):
    with pytest.raises(InputError, match=rf"^{name} must "):
        check_frame(**(GOOD | {name: value}))
    if isinstance(value, np.ndarray):
        with pytest.raises(InputError, match=rf"^{name} must "):
            jax.eval_shape(lambda frame: check_frame(**frame), GOOD | {name: value})


def test_frames_must_agree_in_number_and_have_the_size_asked_for():
    several = {name: np.stack([value] * 3) for name, value in GOOD.items()}
    check_frame(**GOOD, size=(H, W))
    check_frame(**several, size=(H, W), frames=3)
    with pytest.raises(InputError, match=r"intrinsics must have shape \[3, 3, 3\], got \[3, 3\]"):
        check_frame(**(several | {"intrinsics": GOOD["intrinsics"]}), frames=3)
    with pytest.raises(InputError, match=r"image must have shape \[4, 7, 3\], got \[5, 7, 3\]"):
        check_frame(**GOOD, size=(4, W))
    with pytest.raises(InputError, match=r"w2c must have shape \[9, 4, 4\], got \[3, 4, 4\]"):
        check_cameras(several["w2c"], several["intrinsics"], leading=(9,))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", 127.5 * (GOOD["image"] + 1)),
        ("image", np.where(GOOD["image"] > 0.5, np.nan, GOOD["image"])),
        ("depth", -GOOD["depth"]),
        ("depth", 1e-20 * GOOD["depth"]),
        ("depth", np.float32(1e25) * GOOD["depth"]),
        ("w2c", 0 * GOOD["w2c"]),
        ("w2c", np.full((4, 4), np.nan, np.float32)),
        ("w2c", np.diag([2.0, 2.0, 2.0, 1.0]).astype(np.float32)),
        ("w2c", np.diag([1.0, 1.0, -1.0, 1.0]).astype(np.float32)),
        ("intrinsics", np.diag([0.0, 0.0, 1.0]).astype(np.float32)),
        ("intrinsics", np.diag([-6.0, -6.0, 1.0]).astype(np.float32)),
        ("intrinsics", np.diag([0.1, 0.1, 1.0]).astype(np.float32)),
        ("intrinsics", np.full((3, 3), np.inf, np.float32)),
    ],
)
def test_values_that_break_a_convention_are_named(name, value):
    with pytest.raises(InputError, match=rf"^{name} must [^\n]*$"):
        values_with(**{name: value})


def test_what_the_conventions_allow_passes():
    values_with()
    unknown = np.where(np.arange(H * W).reshape(H, W) % 2 > 0, np.nan, np.inf).astype(np.float32)
    values_with(depth=unknown)
    values_with(depth=0 * GOOD["depth"])
    # Resampling overshoots a little.
    values_with(image=1.1 * GOOD["image"])
    # What is traced has no values.
    jax.eval_shape(lambda image: values_with(image=image), jnp.asarray(GOOD["image"]))
