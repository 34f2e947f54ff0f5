import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy

from worldstereo_jax.errors import InputError
from worldstereo_jax.training.checkpoint import Checkpoints
from worldstereo_jax.training.state import init_train_state


def _after(steps):
    step, batches, state = toy.new_step(), toy.new_batches(), toy.new_state(seed=5)
    for _ in range(steps):
        state, _ = step(state, next(batches))
    return state, batches


def test_everything_comes_back(tmp_path):
    state, batches = _after(3)
    expected_next = next(batches)
    batches.set_state({"seed": 0, "position": 3})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, batches)
    fresh = toy.new_batches()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(toy.new_state(seed=0), fresh)
    assert int(restored.step) == 3
    np.testing.assert_array_equal(next(fresh), expected_next)
    # The key is a typed key again, and the saved one, not that of the state it was restored into.
    assert jax.random.key_data(restored.key).tolist() == jax.random.key_data(state.key).tolist()
    assert jnp.issubdtype(restored.key.dtype, jax.dtypes.prng_key)
    for a, b in zip(
        jax.tree.leaves((restored.params, restored.opt_state, restored.ema)),
        jax.tree.leaves((state.params, state.opt_state, state.ema)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_newest_are_kept_and_saved_steps_stay(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for steps in (1, 2, 4):
            state, batches = _after(steps)
            checkpoints.save(state, batches)
        checkpoints.save(state, batches)
        assert checkpoints.latest_step() == 4
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [2, 4]


def test_half_written_step_is_passed_over(tmp_path):
    state, batches = _after(2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, batches)
        temporary = tmp_path / "7.orbax-checkpoint-tmp-0"
    temporary.mkdir()
    (temporary / "half").write_text("x")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 2


def test_what_is_saved_is_not_what_later_steps_make_of_its_buffers(tmp_path):
    """Files are written while the state's buffers are given back to the next steps."""
    state, batches = _after(2)
    expected = np.asarray(state.params["w"]).copy()
    step = toy.new_step()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, batches)
        for _ in range(20):
            state, _ = step(state, next(batches))
    with Checkpoints(tmp_path) as checkpoints:
        like = toy.new_state()
        restored = checkpoints.restore(like, batches)
    np.testing.assert_array_equal(restored.params["w"], expected)
    # The fresh state gave up its room on the devices first.
    assert like.params["w"].is_deleted()


@pytest.mark.parametrize(
    "error", [OSError(28, "full"), ValueError("write: No space left on device")]
)
def test_a_full_disk_is_named(tmp_path, monkeypatch, error):
    state, batches = _after(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, batches)
        checkpoints.wait()

        def refuse(*_, **__):
            raise error

        monkeypatch.setattr(checkpoints._manager, "save", refuse)
        with pytest.raises(InputError, match=r"\(No space left on device\); the newest .* step 1"):
            checkpoints.save(*_after(2))


def test_a_damaged_checkpoint_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for steps in (1, 2):
            checkpoints.save(*_after(steps))
    files = [path for path in (tmp_path / "2/state").rglob("*") if path.parent.name == "d"]
    for path in files:
        path.write_bytes(b"")
    said = r"2: .* or is damaged; when it is removed"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match=said):
        checkpoints.restore(toy.new_state(), toy.new_batches())
    shutil.rmtree(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(toy.new_state(), toy.new_batches()).step) == 1


def test_another_model_or_an_empty_folder_is_refused(tmp_path):
    state, batches = _after(1)
    with Checkpoints(tmp_path / "empty") as checkpoints, pytest.raises(InputError, match="empty"):
        checkpoints.restore(state, batches)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(state, batches)
        other = init_train_state(
            {"w": jnp.zeros((9, 1)), "c": jnp.zeros(1)}, optax.sgd(0.1), jax.random.key(0)
        )
        with pytest.raises(InputError, match="does not fit"):
            checkpoints.restore(other, batches)
