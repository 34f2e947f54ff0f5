"""Checkpoints of a training run over orbax: state, random key and data position together.

Orbax writes each step to a temporary folder and renames it, so a run killed while saving finds
the previous step whole. Files are written while training goes on: a save waits for the one before
it, and copies the arrays to the host's memory before it returns.
"""

import contextlib
import os
import typing
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import refusal
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
                enable_async_checkpointing=True,
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
        """Save the state and the data position under the state's step; a saved step is kept.

        Raises InputError when this save, or the one before, which was still being written, found no
        room or may not write.
        """
        self.wait()
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        with self._naming_refusals():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_as_plain_arrays(state)),
                    data=ocp.args.JsonSave({"state": batches.get_state()}),
                ),
            )

    def wait(self) -> None:
        """Return when the last save is whole on the disk; raises InputError when it cannot be."""
        with self._naming_refusals():
            self._manager.wait_until_finished()

    def restore(self, like: State, batches: Batches) -> State:
        """Restore the newest checkpoint: returns the state, sets the data position.

        `like` is a freshly initialised state: it gives structure, shapes and placement, and gives
        up its buffers, so that there are never two states on the devices. Raises InputError when
        the folder has no checkpoint, a damaged one, or one of another model.
        """
        step = self.latest_step()
        if step is None:
            raise InputError(f"{self._folder}: no checkpoint to resume from")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_plain_arrays(like))
        for leaf in jax.tree.leaves(like.replace(key=None)):
            if isinstance(leaf, jax.Array) and not leaf.is_deleted():
                leaf.delete()
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
        except jax.errors.JaxRuntimeError:
            # Of the devices, such as one that has no room.
            raise
        except Exception as error:
            # Orbax says with exceptions of no kind in particular that a file is cut short or gone.
            raise InputError(
                f"{self._folder / str(step)}: the checkpoint does not fit this model or optimiser, "
                "or is damaged; when it is removed, a run is resumed from the one before"
            ) from error
        batches.set_state(restored["data"]["state"])
        return _with_typed_key(restored["state"], like)

    def close(self) -> None:
        """Wait for what is being written, and release the manager's resources."""
        with self._naming_refusals():
            self._manager.close()

    @contextlib.contextmanager
    def _naming_refusals(self) -> Iterator[None]:
        """Say in a sentence that a disk is full, or may not be written to."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = refusal(error)
            if reason is None:
                raise
            whole = sorted(int(x.name) for x in self._folder.glob("*") if x.name.isdecimal())
            newest = f"the newest whole one is of step {whole[-1]}" if whole else "there is none"
            raise InputError(
                f"{self._folder}: a checkpoint could not be written ({reason}); {newest}"
            ) from error


def _as_plain_arrays(state: State) -> State:
    """Replace the typed random key, which files cannot hold, by its words."""
    return state.replace(key=jax.random.key_data(state.key))


def _with_typed_key(state: typing.Any, like: State) -> State:
    words = jnp.asarray(state.key)
    return state.replace(key=jax.random.wrap_key_data(words, impl=jax.random.key_impl(like.key)))
