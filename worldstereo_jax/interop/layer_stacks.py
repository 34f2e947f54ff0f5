"""Which parameters belong to which layer: stacked (scanned) and unrolled forms of one tree.

Stacked, a run of layers is one set of arrays with a leading layer axis under "layers"; unrolled,
every layer has its own set under "layer_<index in the run>". Paths are tuples of names joined by
"/" here.
"""

import typing

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.models.transformer import CONTROLLED, PLAIN


def runs(config: ModelConfig) -> dict[str, range]:
    """The backbone layers of each run of layers, by the run's parameter group."""
    split = config.controlled_layers
    found = {CONTROLLED: range(0, split), PLAIN: range(split, config.num_layers)}
    return {name: layers for name, layers in found.items() if len(layers)}


def unstack(params: PyTree, config: ModelConfig) -> PyTree:
    """Parameters of `scan_layers=True` as those of `scan_layers=False`; no copy of the values."""
    flat = {}
    for path, value in flat_paths(params).items():
        run, _, rest = path.partition("/layers/")
        if rest and run in runs(config):
            for index in range(len(runs(config)[run])):
                flat[f"{run}/layer_{index}/{rest}"] = value[index]
        else:
            flat[path] = value
    return from_flat(flat)


def stack(params: PyTree, config: ModelConfig) -> PyTree:
    """The inverse of `unstack`."""
    flat = flat_paths(params)
    for run, layers in runs(config).items():
        first = f"{run}/layer_0/"
        for rest in [path[len(first) :] for path in flat if path.startswith(first)]:
            rows = [flat.pop(f"{run}/layer_{i}/{rest}") for i in range(len(layers))]
            module = np if isinstance(rows[0], np.ndarray) else jnp
            flat[f"{run}/layers/{rest}"] = module.stack(rows)
    return from_flat(flat)


def flat_paths(params: PyTree) -> dict[str, typing.Any]:
    """Arrays by path, names joined by "/"."""
    return typing.cast(dict[str, typing.Any], flatten_dict(params, sep="/"))


def from_flat(flat: dict[str, typing.Any]) -> PyTree:
    """The inverse of `flat_paths`."""
    return unflatten_dict(flat, sep="/")
