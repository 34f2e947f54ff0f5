"""The presets whose trained weights ship inside the package."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import PRESETS, ModelConfig
from worldstereo_jax.errors import InputError, unknown_name
from worldstereo_jax.interop.layer_stacks import flat_paths, from_flat
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.interop.weights import SHIPPED_WEIGHTS, check_safetensors, load_weights
from worldstereo_jax.models.depth_tiny import TinyDepth, TinyDepthConfig
from worldstereo_jax.models.vae_tiny import TinyVae, TinyVaeConfig
from worldstereo_jax.models.worldstereo import WorldStereo, init_params
from worldstereo_jax.sampling.conditions import example_conditions
from worldstereo_jax.sampling.denoise import model_inputs
from worldstereo_jax.sampling.world import RolloutConfig, World, WorldParams

# preset -> network -> file in the package's weights folder.
SHIPPED: Mapping[str, Mapping[str, str]] = {
    "tiny": {
        "denoiser": "tiny_denoiser.safetensors",
        "vae": "tiny_vae.safetensors",
        "depth": "tiny_depth.safetensors",
    }
}

SILENT_AT_START = ("entry_attention",)
"""Modules whose output starts at exactly zero, so that files from before they existed may lack them
and the model computes with them what it computed without."""


def load_world(
    preset: str = "tiny", *, rollout: RolloutConfig | None = None, weights: Path = SHIPPED_WEIGHTS
) -> tuple[World, WorldParams]:
    """The networks of a preset and their trained parameters.

    Args:
        preset: name of a preset that ships with the package.
        rollout: sizes to roll out at; the preset's own by default.
        weights: folder that holds the preset's files.

    Raises:
        InputError: for an unknown preset (the nearest name is suggested), or weights that are
            missing or damaged.
    """
    if preset not in SHIPPED:
        raise InputError(unknown_name("preset with weights", preset, SHIPPED))
    files = {network: weights / name for network, name in SHIPPED[preset].items()}
    vae_params, vae_metadata = load_weights(files["vae"])
    depth_params, depth_metadata = load_weights(files["depth"])
    world = World(
        name=preset,
        rollout=rollout or RolloutConfig(),
        denoiser=WorldStereo(denoiser_config(files["denoiser"], PRESETS[preset])),
        vae=TinyVae(TinyVaeConfig.from_dict(vae_metadata["config"])),
        depth=TinyDepth(TinyDepthConfig.from_dict(depth_metadata["config"])),
    )
    return world, WorldParams(
        denoiser=load_denoiser(files["denoiser"], world.denoiser.config),
        vae=vae_params,
        depth=depth_params,
    )


def denoiser_config(path: Path, config: ModelConfig) -> ModelConfig:
    """The config that the weights in a file were trained under.

    No tensor shows where references stood then, so the file says it; one that does not is from
    before there was a choice.

    Args:
        path: a file of ours.
        config: of the preset.

    Raises:
        InputError: for a file that is missing or damaged, or that says what is no choice.
    """
    positions = check_safetensors(path).get("reference_positions", "beside")
    try:
        return config.replace(reference_positions=positions)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def load_denoiser(path: Path, config: ModelConfig) -> PyTree:
    """The parameters of `WorldStereo(config)` from a file of ours.

    A file that lacks the whole of a module in `SILENT_AT_START` is completed with that module
    freshly initialised, the same every time. Nothing else may be missing, and nothing be left over.

    Raises:
        InputError: for a file that is missing or damaged, or whose tensors are not the model's.
    """
    params, _ = load_weights(path)
    flat, expected = flat_paths(params), parameter_shapes(config)
    absent = {name for name in SILENT_AT_START if not any(f"/{name}/" in tensor for tensor in flat)}
    new = [tensor for tensor in expected if any(f"/{name}/" in tensor for name in absent)]
    for tensor in sorted(flat.keys() | (expected.keys() - set(new))):
        found = tuple(flat[tensor].shape) if tensor in flat else "missing"
        if found != expected.get(tensor):
            raise InputError(
                f"{path}: tensor {tensor} is {found}, expected {expected.get(tensor, 'none')}"
            )
    if not new:
        return params

    # Only what is asked for is computed: the compiler drops the rest.
    @jax.jit
    def fresh(key: jax.Array) -> dict[str, jax.Array]:
        initialised = flat_paths(init_params(config, key))
        return {tensor: initialised[tensor] for tensor in new}

    return from_flat(flat | fresh(jax.random.key(0)))


def load_untrained(
    preset: str = "tiny", *, key: jax.Array, vae_weights: Path | None = None
) -> tuple[World, WorldParams]:
    """A preset with its trained autoencoder, and everything else freshly initialised.

    Args:
        preset: name of a preset that ships with the package.
        key: random key of the initial parameters.
        vae_weights: file of the autoencoder; the shipped one by default.

    Raises:
        InputError: when the autoencoder's weights are missing or damaged.
    """
    vae_params, metadata = load_weights(vae_weights or SHIPPED_WEIGHTS / SHIPPED[preset]["vae"])
    world = World(
        name=preset,
        rollout=RolloutConfig(),
        denoiser=WorldStereo(PRESETS[preset]),
        vae=TinyVae(TinyVaeConfig.from_dict(metadata["config"])),
        depth=TinyDepth(TinyDepthConfig()),
    )
    denoiser_key, depth_key = jax.random.split(key)

    # Under jit, or every operation of a forward pass is compiled by itself.
    @jax.jit
    def init_denoiser(key: jax.Array) -> PyTree:
        example = jax.tree.map(
            lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), example_conditions(world)
        )
        latent = jnp.zeros_like(example.render_latent)
        inputs = model_inputs(world.denoiser.config, latent, jnp.zeros((1,), jnp.float32), example)
        return world.denoiser.init(key, *inputs.args, **inputs.kwargs)["params"]

    image = jnp.zeros((1, world.rollout.height, world.rollout.width, 3), jnp.float32)
    return world, WorldParams(
        denoiser=init_denoiser(denoiser_key),
        vae=vae_params,
        depth=jax.jit(world.depth.init)(depth_key, image)["params"],
    )
