"""Entrances for the spatial-stereo memory that are added to an official checkpoint.

Published checkpoints attend to whole reference views and to nothing else of that memory. Warped
views (row S18) and surface entries (row S28) enter by modules of their own whose last projection is
zero: until they are trained they add exact zeros to what a checkpoint computes, so that operation
by operation it computes the same to the bit (a compiler that fuses these operations otherwise may
still round them otherwise). Their widths stand in config.json as `warped_width` and `entry_width`.
"""

import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import dense_pattern
from worldstereo_jax.array_types import Key, PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.layer_stacks import flat_paths, from_flat, runs, unstack
from worldstereo_jax.interop.official import model_places
from worldstereo_jax.memory.entry_features import pyramid_widths
from worldstereo_jax.memory.entry_tokens import entry_token_width
from worldstereo_jax.models.attention import EntryAttention, WarpedAttention
from worldstereo_jax.models.placement import Placement, one_device
from worldstereo_jax.models.rope import real_rotary
from worldstereo_jax.models.worldstereo import WarpedEntry
from worldstereo_jax.sampling.warp_reading import WARPED_CHANNELS

SLOTS: Mapping[str, tuple[str, ...]] = {
    "warped_width": ("warped_entry", "warped_attention"),
    "entry_width": ("entry_attention",),
}
"""The modules that each width gives a model."""


def read_widths() -> dict[str, int]:
    """The widths of what clips are told when nothing of the reading is swapped."""
    width = entry_token_width(pyramid_widths())
    return {"warped_width": WARPED_CHANNELS, "entry_width": width}


def slot_widths(config: ModelConfig) -> dict[str, int]:
    """The widths that a model has, as keys of its config.json; empty for an official model."""
    return {name: getattr(config, name) for name in SLOTS if getattr(config, name) > 0}


def slot_tensors(config: ModelConfig) -> list[str]:
    """Names, in the official style, of the tensors that no official checkpoint has."""
    modules = {module for names in SLOTS.values() for module in names}
    table = model_places(config)
    return sorted(name for name, place in table.items() if modules & set(place.path.split("/")))


def attach_memory(
    config: ModelConfig,
    params: PyTree,
    key: Key[jax.Array, ""],
    *,
    warped_width: int = 0,
    entry_width: int = 0,
    placement: Placement = one_device,
) -> tuple[ModelConfig, PyTree]:
    """Give a model modules for warped views, for entries, or for both.

    Args:
        config: of the model.
        params: its parameters, as `from_pretrained` gives them; not in 8 bits.
        key: random key of all but the zero projections.
        warped_width, entry_width: channels of what will be read; 0 attaches nothing. See
            `read_widths`.
        placement: device layout of the new arrays.

    Returns:
        The config with these widths, and the parameters with the new ones beside them, in their
        type.

    Raises:
        InputError: when nothing is to be attached, or the model has such modules already.
    """
    widths = {"warped_width": warped_width, "entry_width": entry_width}
    wanted = {name: width for name, width in widths.items() if width > 0}
    if not wanted:
        raise InputError("neither warped_width nor entry_width is above 0: nothing to attach")
    for name in wanted:
        if getattr(config, name) > 0:
            raise InputError(f"the model has a {name} of {getattr(config, name)} already")
    grown = config.replace(**wanted)
    flat = flat_paths(params)
    dtype = flat["patch_embedding/kernel"].dtype

    # A typed key cannot be laid over the devices of other hosts, its words can.
    kind, words = jax.random.key_impl(key), np.asarray(jax.random.key_data(key))

    def fresh(words: jax.Array) -> dict[str, jax.Array]:
        made = _fresh_slots(grown, tuple(wanted), jax.random.wrap_key_data(words, impl=kind))
        return {path: leaf.astype(dtype) for path, leaf in made.items()}

    shapes = jax.eval_shape(fresh, words)
    places = {path: placement(path, leaf.shape) for path, leaf in shapes.items()}
    return grown, from_flat(flat | jax.jit(fresh, out_shardings=places)(words))


def _fresh_slots(
    config: ModelConfig, wanted: tuple[str, ...], key: jax.Array
) -> dict[str, jax.Array]:
    """The initial parameters of the modules, by their paths in the model's tree."""
    width, heads, dtype = config.width, config.num_heads, config.compute_dtype
    rows, columns = config.patch_size[1:]
    token = jnp.zeros((1, 1, width), jnp.float32)

    def warped(key: jax.Array) -> PyTree:
        per_token = config.warped_width + config.patch_size[0] * rows * columns
        candidates = jnp.zeros((1, 1, 1, per_token), jnp.float32)
        module = WarpedAttention(heads, dtype)
        return module.init(key, token, candidates, jnp.zeros((1, 1, 1), jnp.float32))["params"]

    def entries(key: jax.Array) -> PyTree:
        place = real_rotary(jnp.zeros((1, 1, 3), jnp.float32), config.head_size)
        features = jnp.zeros((1, 1, config.entry_width), jnp.float32)
        # Any implementation: its result is not used.
        module = EntryAttention(heads, "reference", dtype)
        return module.init(key, token, features, dense_pattern(1, 1), place, place)["params"]

    in_layers = {"warped_attention": warped, "entry_attention": entries}
    modules = [module for name in wanted for module in SLOTS[name]]
    flat: dict[str, typing.Any] = {}
    if "warped_entry" in modules:
        grid = (1, *config.patch_size)
        latent = jnp.zeros((*grid, config.warped_width), jnp.float32)
        made = WarpedEntry(config).init(key, latent, jnp.zeros(grid, jnp.float32))["params"]
        flat |= {f"warped_entry/{path}": leaf for path, leaf in flat_paths(made).items()}
    for run, layers in runs(config).items():
        for number, (name, make) in enumerate(in_layers.items()):
            if name not in modules:
                continue
            keys = jax.random.split(jax.random.fold_in(key, number), config.num_layers)
            own = keys[layers.start : layers.stop]
            for path, leaf in flat_paths(jax.vmap(make)(own)).items():
                flat[f"{run}/layers/backbone/{name}/{path}"] = leaf
    if not config.scan_layers:
        flat = flat_paths(unstack(from_flat(flat), config))
    return flat
