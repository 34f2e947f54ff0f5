"""Low-rank adapters: a large model learns in a few small matrices, while its weights stay.

Hu et al. 2021, "LoRA": beside a linear map x W stands s (x A) B, with A [in, rank] drawn at random
and B [rank, out] zero, so that training starts from the model itself. The adapters are a tree of
their own whose paths are those of the layers, `join`ed to the model's when it is called, and they
are all that a training state holds. So there are no gradients, no moments, no average and no saved
copy of the weights, which may be held in the type that is computed in, or in 8 bits.

The product is applied to the activations, inside the layer (`models.layers.Linear`), and not
merged into the weights before each step. Merged, W + s A B would be rounded to the weights' type,
in which early updates vanish; its gradient would be that of all of W, a third of a step's products
and as many bytes, only to be projected on A and B; and 8-bit weights would have to be brought out.
Applied, it costs 2 rank tokens (in + out) operations beside 2 tokens in out: 0.6 % at rank 16 and
a width of 5120. Nothing of it is kept for the backward pass when a layer is computed again there.
"""

import math
import typing
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from worldstereo_jax.array_types import Array, Key, PyTree
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.layers import ADAPTER, DOWN, UP
from worldstereo_jax.training.state import only

ATTENTION = ("query", "key", "value", "out")
"""The linear maps of every attention layer, of the backbone and of the control branch."""


class LoraConfig(struct.PyTreeNode):
    """Which layers get an adapter, and of what size.

    Attributes:
        rank: channels between the two factors.
        alpha: the adapter's output is multiplied by alpha / rank.
        modules: names of modules as in `state.only`; every linear layer in them gets an adapter.
    """

    rank: int = struct.field(pytree_node=False)
    alpha: float = struct.field(pytree_node=False)
    modules: tuple[str, ...] = struct.field(pytree_node=False, default=ATTENTION)

    @property
    def scale(self) -> float:
        """Factor on the product."""
        return self.alpha / self.rank


def init_adapters(
    shapes: Mapping[str, Sequence[int]], config: LoraConfig, key: Key[Array, ""]
) -> PyTree:
    """Adapters of the chosen layers that change nothing yet.

    A is uniform within 1 / sqrt(in), as PyTorch draws a linear layer; B is zero. Each matrix has a
    key of its own, so that one does not depend on which others are chosen.

    Args:
        shapes: of the model's parameters by path, names joined by "/"
            (`interop.official.parameter_shapes`).
        config: which layers, and the rank.
        key: random key.

    Returns:
        Nested dict, float32: A [in, rank] and B [rank, out] of each layer, [layers, ...] of a
        stack.

    Raises:
        InputError: for a rank below 1, or modules without a linear layer.
    """
    if config.rank < 1:
        raise InputError(f"rank of adapters is {config.rank}, expected 1 or more")
    tree = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    chosen = flatten_dict(only(unflatten_dict(tree, sep="/"), *config.modules), sep="/")
    adapters: dict[str, Array] = {}
    for path, shape in shapes.items():
        layer, _, kind = path.rpartition("/")
        stacked = "/layers/" in path
        # A patch embedding's kernel has more axes: it is no layer of `models.layers.linear`.
        if not chosen[path] or kind != "kernel" or len(shape) != 2 + stacked:
            continue
        *rows, size, features = shape
        bound = 1 / math.sqrt(size)
        drawn = jax.random.fold_in(key, zlib.crc32(layer.encode()))
        adapters[f"{layer}/{ADAPTER}/{DOWN}"] = jax.random.uniform(
            drawn, (*rows, size, config.rank), jnp.float32, -bound, bound
        )
        adapters[f"{layer}/{ADAPTER}/{UP}"] = jnp.zeros((*rows, config.rank, features), jnp.float32)
    if not adapters:
        raise InputError(f"no linear layers belong to {', '.join(config.modules)}")
    return unflatten_dict(adapters, sep="/")


def scaled(adapters: PyTree, config: LoraConfig) -> PyTree:
    """The adapters as the layers apply them: B times alpha / rank."""

    def scale(path: typing.Any, leaf: typing.Any) -> typing.Any:
        return leaf * config.scale if path[-1].key == UP else leaf

    return jax.tree_util.tree_map_with_path(scale, adapters)
