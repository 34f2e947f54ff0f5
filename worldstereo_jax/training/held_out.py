"""What a model makes of clips that it does not train on: the loss with the memories and without.

A training loss falls when clips are learnt by heart, and jumps with the noise levels that a batch
happens to get. Here clips, noise and levels are the same each time, and what the stored views,
warps and entries are worth is the difference between two figures.
"""

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from worldstereo_jax.array_types import Array, Float, Key, PyTree, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.training.clip_cache import ClipCache
from worldstereo_jax.training.official_objective import (
    SHIFT,
    TrainingClip,
    drop_inputs,
    stratified_sigmas,
    velocity_error,
)

LOSS, WITHOUT_MEMORY = "held_out_loss", "held_out_loss_without_memory"
"""The figures' names in the log."""


class HeldOutClips:
    """The clips of caches in their order, in whole batches; what is left over is not read.

    Args:
        sources: caches.
        batch_size: clips of a batch, of all hosts together.
        rows: which of a batch's clips this host reads (`sharding.TrainLayout.rows`), None for all.

    Raises InputError for fewer clips than a batch.
    """

    def __init__(
        self, sources: Sequence[ClipCache], batch_size: int, *, rows: Sequence[int] | None = None
    ) -> None:
        self._clips = [(source, number) for source in sources for number in range(len(source))]
        if len(self._clips) < batch_size:
            named = ", ".join(source.folder for source in sources)
            raise InputError(
                f"{named}: {len(self._clips)} clips are held out, expected a batch of "
                f"{batch_size} at least"
            )
        self._batch_size = batch_size
        self._rows = range(batch_size) if rows is None else tuple(rows)

    def __len__(self) -> int:
        return len(self._clips) // self._batch_size

    def __iter__(self) -> Iterator[Mapping[str, ndarray]]:
        """The batches, field name -> array with a leading axis of this host's rows."""
        for batch in range(len(self)):
            numbers = [batch * self._batch_size + row for row in self._rows]
            clips = [source[number] for source, number in (self._clips[i] for i in numbers)]
            yield {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}


def held_out_losses(
    model: WorldStereo,
    params: PyTree,
    clip: TrainingClip,
    null_text: Float[Array, "l ct"],
    key: Key[Array, ""],
    *,
    shift: float = SHIFT,
) -> dict[str, Float[Array, ""]]:
    """Flow-matching losses of a batch, with all that it is told and without the stored views.

    Args:
        model, params, clip: see `official_objective.velocity_error`.
        null_text: text encoder's output of the empty prompt.
        key: random key of noise levels and noise, the same for both.
        shift: flow shift of the noise levels.
    """
    sigma_key, noise_key = jax.random.split(key)
    sigma = stratified_sigmas(sigma_key, clip.target.shape[0], shift)
    noise = jax.random.normal(noise_key, clip.target.shape)
    alone = drop_inputs(clip, null_text, key, drop_text=0.0, drop_references=1.0)
    return {
        name: velocity_error(model, params, each, sigma, noise).mean()
        for name, each in ((LOSS, clip), (WITHOUT_MEMORY, alone))
    }


def make_evaluation(
    losses: Callable[[PyTree, typing.Any, Array], Mapping[str, Array]],
    clips: HeldOutClips,
    key: Key[Array, ""],
    *,
    place: Callable[[typing.Any], typing.Any] = lambda batch: batch,
) -> Callable[[PyTree], dict[str, float]]:
    """A function of the model's parameters: means of the losses over all batches.

    On several hosts all call it.

    Args:
        losses: (params, batch, key) -> losses, scalars; compiled once.
        clips: to judge by.
        key: random key; each batch has a key of its own, the same each time.
        place: lays this host's rows of a batch where they are computed with.
    """
    compiled = jax.jit(losses)

    def evaluate(params: PyTree) -> dict[str, float]:
        found = [
            jax.device_get(compiled(params, place(batch), jax.random.fold_in(key, number)))
            for number, batch in enumerate(clips)
        ]
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}

    return evaluate
