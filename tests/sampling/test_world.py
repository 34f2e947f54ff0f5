import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    empty_memory,
    init_memory,
    remember,
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
