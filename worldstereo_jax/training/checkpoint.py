"""Checkpoints of a training run over orbax: state, random key and data position together.

Orbax writes each step to a temporary folder and renames it, so a run killed while saving finds
the previous step whole.
"""

import os
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from worldstereo_jax.errors import InputError
from worldstereo_jax.training.batches import Batches
from worldstereo_jax.training.state import RunState, State


class Checkpoints:
    """The checkpoints of one run, in `folder`/<step>; the newest `keep` stay.

    Use as a context manager, or call `close`.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        self._folder = Path(folder).resolve()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def latest_step(self) -> int | None:
        """Return the newest saved step, None when nothing is saved."""
        return self._manager.latest_step()

    def save(self, state: RunState, batches: Batches) -> None:
        """Save the state and the data position under the state's step; a saved step is kept."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_as_plain_arrays(state)),
                data=ocp.args.JsonSave({"state": batches.get_state()}),
            ),
        )
        self._manager.wait_until_finished()

    def restore(self, like: State, batches: Batches) -> State:
        """Restore the newest checkpoint: returns the state, sets the data position.

        `like` is a freshly initialised state: it gives structure, shapes and placement. Raises
        InputError when the folder has no checkpoint or one of another model.
        """
        step = self.latest_step()
        if step is None:
            raise InputError(f"{self._folder}: no checkpoint to resume from")
        plain = _as_plain_arrays(like)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, plain)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{self._folder / str(step)}: the checkpoint does not fit this model or optimiser"
            ) from error
        batches.set_state(restored["data"]["state"])
        return _with_typed_key(restored["state"], like)

    def close(self) -> None:
        """Release the manager's resources."""
        self._manager.close()


def _as_plain_arrays(state: State) -> State:
    """Replace the typed random key, which files cannot hold, by its words."""
    return state.replace(key=jax.random.key_data(state.key))


def _with_typed_key(state: typing.Any, like: State) -> State:
    words = jnp.asarray(state.key)
    return state.replace(key=jax.random.wrap_key_data(words, impl=jax.random.key_impl(like.key)))
