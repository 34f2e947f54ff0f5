"""Where training batches come from: an iterator whose position can be saved and restored."""

import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, PyTree
from worldstereo_jax.errors import InputError


@typing.runtime_checkable
class Batches(typing.Protocol):
    """An endless iterator with grain's saving protocol: `get_state` gives JSON-able data."""

    def __next__(self) -> typing.Any:
        """Return the next batch, a pytree of arrays."""
        ...

    def get_state(self) -> typing.Any:
        """Describe the position, for `set_state` of an iterator built the same way."""
        ...

    def set_state(self, state: typing.Any) -> None:
        """Go to a position."""
        ...


class SeededBatches:
    """Batches that are a function of seed and position alone.

    `draw(rng)` makes one batch from a numpy generator seeded by (seed, position), so any position
    is reached at once and a resumed run sees what the uninterrupted one would have seen.
    """

    def __init__(self, draw: Callable[[np.random.Generator], typing.Any], seed: int) -> None:
        self._draw = draw
        self._seed = seed
        self._position = 0

    def __iter__(self) -> "SeededBatches":
        return self

    def __next__(self) -> typing.Any:
        """Draw the batch at the present position and step on."""
        rng = np.random.default_rng((self._seed, self._position))
        self._position += 1
        return self._draw(rng)

    def get_state(self) -> dict[str, int]:
        """Return seed and position."""
        return {"seed": self._seed, "position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Go to a saved position; raises InputError when it was saved under another seed."""
        if state["seed"] != self._seed:
            raise InputError(
                f"seed: the checkpoint's data has seed {state['seed']}, this run {self._seed}"
            )
        self._position = state["position"]


def part_of(batch: PyTree, number: Array, parts: int) -> PyTree:
    """Every `parts`-th sample of a batch from `number` on; the number may be traced."""

    def take(x: Array) -> Array:
        x = jnp.asarray(x)
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(x, number, axis=1, keepdims=False)

    return jax.tree.map(take, batch)
