"""A model of a few thousand parameters and inputs for it, shared by the model tests."""

import functools
import typing

import jax
import numpy as np

from tests.compiling import ALIKE
from worldstereo_jax.config import ControlConfig, ModelConfig
from worldstereo_jax.interop.layer_stacks import from_flat
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.models.control import ControlInput
from worldstereo_jax.models.worldstereo import (
    MemoryEntries,
    References,
    WarpedMemory,
    WorldStereo,
)

SMALL = ModelConfig(
    width=24,
    num_layers=3,
    num_heads=2,
    ffn_width=32,
    text_dim=8,
    freq_dim=16,
    control=ControlConfig(
        width=16, ffn_width=16, num_heads=2, num_layers=2, embed_width=24, mid_channels=16
    ),
    warped_width=5,
    entry_width=7,
)
BATCH, FRAMES, VIEWS, ROWS, COLUMNS, ENTRIES = 2, 2, 3, 4, 8, 10
TOKENS_PER_FRAME = (ROWS // 2) * (COLUMNS // 2)
TARGET, REFERENCE = FRAMES * TOKENS_PER_FRAME, VIEWS * TOKENS_PER_FRAME


def array(values, dtype=None) -> jax.Array:
    """The values on the device; `jnp.asarray` would compile a program for every shape."""
    return jax.device_put(np.asarray(values, dtype))


def normal(seed, *shape):
    return array(np.random.default_rng(seed).normal(size=shape), np.float32)


def random_params(config=SMALL, seed=0):
    """Random parameters, those that start at zero included; made without compiling anything."""
    generator = np.random.default_rng(seed)

    def draw(path, shape):
        x = generator.normal(size=shape)
        if path.endswith("kernel"):
            # A stack of layers has a leading axis that is no input.
            inputs = shape[1:-1] if "/layers/" in path else shape[:-1]
            x /= np.sqrt(np.prod(inputs))
        else:
            x = 0.2 * x + path.endswith("scale")
        return array(x, np.float32)

    return from_flat({path: draw(path, shape) for path, shape in parameter_shapes(config).items()})


def inputs():
    """All inputs of `WorldStereo.__call__` but masks, token order and warped memory."""
    latent = (BATCH, FRAMES, ROWS, COLUMNS)
    pixels = (BATCH, FRAMES, 8 * ROWS, 8 * COLUMNS)
    return {
        "latent": normal(0, *latent, 36),
        "timestep": array([500.0, 20.0], np.float32),
        "text": normal(1, BATCH, 3, 8),
        "control": ControlInput(
            normal(2, *latent, 16), normal(3, *pixels, 1), normal(4, *pixels, 6)
        ),
        "references": References(
            latent=normal(5, BATCH, VIEWS, ROWS, COLUMNS, 36),
            index=array([[0, 1, 0], [1, 0, 0]], np.int32),
            camera=normal(6, BATCH, VIEWS, 7),
            valid=None,
        ),
        "camera": normal(7, BATCH, FRAMES, 7),
    }


def warped_memory(candidates=2, holes=False, width=SMALL.warped_width) -> typing.Any:
    shape = (BATCH, FRAMES, ROWS, COLUMNS, candidates)
    log_weight = normal(9, *shape)
    return WarpedMemory(
        features=normal(8, *shape, width),
        log_weight=array(np.full(shape, -np.inf, np.float32)) if holes else log_weight,
    )


def memory_entries(valid=True) -> typing.Any:
    return MemoryEntries(
        features=normal(10, BATCH, ENTRIES, SMALL.entry_width),
        place=array(3 * np.asarray(normal(11, BATCH, ENTRIES, 3))),
        target_place=array(3 * np.asarray(normal(12, BATCH, TARGET, 3))),
        valid=array(np.broadcast_to(valid, (BATCH, ENTRIES))),
    )


@functools.partial(jax.jit, static_argnums=0)
def _init(module, inputs):
    return module.init(jax.random.key(0), *inputs)["params"]


def init(module, *inputs) -> typing.Any:
    """Parameters of a module as it starts."""
    return _init(module, inputs)


def random_like(module, *inputs, method=None, seed=0) -> typing.Any:
    """Random parameters of a module, none of them zero; made without compiling anything."""
    shapes = jax.eval_shape(
        lambda *inputs: module.init(jax.random.key(0), *inputs, method=method)["params"], *inputs
    )
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        x = generator.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            return x / np.sqrt(np.float32(np.prod(leaf.shape[:-1])))
        return np.float32(0.2) * x + np.float32(path[-1].key == "scale")

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnames=("module", "method"))
def _apply(module, params, inputs, method):
    return module.apply({"params": params}, *inputs, method=method)


def apply(module, params, *inputs, method=None) -> typing.Any:
    """A module's output for its parameters; calls that share shapes share one compilation."""
    return _apply(module, params, inputs, method)


@functools.cache
def _jitted(config, alike):
    def apply(params, kwargs):
        return WorldStereo(config).apply({"params": params}, **kwargs)

    return jax.jit(apply, compiler_options=ALIKE if alike else None)


def run(params, config=SMALL, **kwargs) -> typing.Any:
    """The model's output; calls that share config and shapes share one compilation."""
    return _jitted(config, False)(params, kwargs)


def run_alike(params, config=SMALL, **kwargs) -> typing.Any:
    """The same where bits are compared with those of another program; compiles thrice as long."""
    return _jitted(config, True)(params, kwargs)
