"""Recorded outputs of the official networks, compared with ours; weights under official names.

Everything is float32, the official side of every switch.
"""

import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.golden_arrays import GoldenArrays, channels_last, relative_error
from worldstereo_jax.interop.official import (
    from_official,
    infer_config,
    model_places,
    module_table,
    params_from_official,
    to_official,
)
from worldstereo_jax.interop.official_names import (
    MASK_EMBEDDING_RULES,
    STEREO_BLOCK_RULES,
    Place,
    Rule,
)
from worldstereo_jax.interop.safetensors_io import SafetensorsFile
from worldstereo_jax.models.control import ControlInput, MaskEmbedding
from worldstereo_jax.models.stereo_v1 import StereoBlock
from worldstereo_jax.models.worldstereo import References, WorldStereo

Errors = dict[str, float]
"""Relative error of each compared output, by the name of its array."""


def model_config(weights: SafetensorsFile, arrays: GoldenArrays) -> ModelConfig:
    """Sizes of a recorded transformer: from its tensors' shapes, and what they do not show."""
    control = arrays.number("control_num_heads") if "control_num_heads" in arrays else None
    downsample = arrays.number("mask_downsample") if "mask_downsample" in arrays else None
    return infer_config(
        weights.shapes,
        num_heads=arrays.number("num_heads"),
        control_num_heads=control,
        update_ref=bool(arrays.number("update_ref")) if "update_ref" in arrays else True,
        mask_downsample=downsample,
        patch_size=arrays.triple("patch_size") if "patch_size" in arrays else None,
        source=str(weights.path),
    )


def model_inputs(arrays: GoldenArrays) -> dict[str, PyTree]:
    """The recorded keyword inputs of a transformer as ours, all but latent and timestep."""
    inputs: dict[str, PyTree] = {"text": jnp.asarray(arrays["encoder_hidden_states"])}
    if "encoder_hidden_states_image" in arrays:
        inputs["image_tokens"] = jnp.asarray(arrays["encoder_hidden_states_image"])
    if "render_latent" in arrays:
        inputs["control"] = ControlInput(
            render_latent=channels_last(arrays["render_latent"]),
            render_mask=channels_last(arrays["render_mask"]),
            plucker=channels_last(arrays["camera_embedding"]),
        )
    if "camera_qt" in arrays:
        inputs["camera"] = jnp.asarray(arrays["camera_qt"])
    if "reference_latent" in arrays:
        latent = channels_last(arrays["reference_latent"])
        index = np.broadcast_to(arrays["ref_index"], latent.shape[:2])
        inputs["references"] = References(
            latent=latent,
            index=jnp.asarray(index, jnp.int32),
            camera=jnp.asarray(arrays["camera_qt_ref"]),
        )
    return inputs


class Network(typing.NamedTuple):
    """A recorded network in our form: module, parameters, and the place of every tensor."""

    module: nn.Module
    params: PyTree
    table: dict[str, Place]


def load_model(weights: SafetensorsFile, arrays: GoldenArrays) -> Network:
    """The transformer: camera model, memory model, or the plain backbone."""
    config = model_config(weights, arrays)
    params = params_from_official(weights, config, source=str(weights.path))
    return Network(WorldStereo(config), params, model_places(config))


def check_model(network: Network, arrays: GoldenArrays) -> Errors:
    """One call of the transformer."""
    out = jax.jit(lambda p, *args, **kw: network.module.apply({"params": p}, *args, **kw))(
        network.params,
        channels_last(arrays["hidden_states"]),
        jnp.asarray(arrays["timestep"], jnp.float32),
        **model_inputs(arrays),
    )
    return {"out_sample": relative_error(out, np.moveaxis(arrays["out_sample"], 1, -1))}


def load_mask_embedding(weights: SafetensorsFile, arrays: GoldenArrays) -> Network:
    """The mask and ray embedding of the control branch by itself."""
    for name in ("mask_proj.0.weight", "mask_zero_proj.weight"):
        if len(weights.shapes.get(name, ())) != 5:
            raise InputError(f"{weights.path}: tensor {name} is missing or has not 5 axes")
    mid, _, downsample, *_ = weights.shapes["mask_proj.0.weight"]
    width, _, *patch = weights.shapes["mask_zero_proj.weight"]
    if downsample != arrays.number("mask_downsample"):
        raise InputError(
            f"{weights.path}: tensor mask_proj.0.weight shows mask_downsample {downsample}, "
            f"expected {arrays.number('mask_downsample')} as in {arrays.path.name}"
        )
    module = MaskEmbedding(width, mid, downsample, (patch[0], patch[1], patch[2]))
    x = channels_last(arrays["add_inputs"])
    return _load(module, lambda: module.init(jax.random.key(0), x), MASK_EMBEDDING_RULES, weights)


def check_mask_embedding(network: Network, arrays: GoldenArrays) -> Errors:
    """The tokens that it makes of masks and rays."""
    x = channels_last(arrays["add_inputs"])
    out = typing.cast(jax.Array, jax.jit(network.module.apply)({"params": network.params}, x))
    tokens = out.reshape(out.shape[0], -1, out.shape[-1])
    return {"out_tokens": relative_error(tokens, arrays["out_tokens"])}


def load_stereo_block(weights: SafetensorsFile, arrays: GoldenArrays) -> Network:
    """One block of the first paper's stereo branch."""
    if "ffn.0.weight" not in weights:
        raise InputError(f"{weights.path}: tensor ffn.0.weight is missing")
    module = StereoBlock(arrays.number("num_heads"), weights.shapes["ffn.0.weight"][0])
    grid, inputs = arrays.triple("grid"), _stereo_inputs(arrays)
    return _load(
        module, lambda: module.init(jax.random.key(0), *inputs, grid), STEREO_BLOCK_RULES, weights
    )


def check_stereo_block(network: Network, arrays: GoldenArrays) -> Errors:
    """Both streams after the block."""
    grid, inputs = arrays.triple("grid"), _stereo_inputs(arrays)
    target, reference = jax.jit(lambda p: network.module.apply({"params": p}, *inputs, grid))(
        network.params
    )
    return {
        "out_target": relative_error(target, arrays["out_target"]),
        "out_reference": relative_error(reference, arrays["out_reference"]),
    }


def check_weights(network: Network, weights: SafetensorsFile) -> Errors:
    """Official tensors to ours and back: 0 where every one comes back bit for bit."""
    back = to_official(network.params, network.table)
    same = all(
        back[name].dtype == weights[name].dtype and back[name].tobytes() == weights[name].tobytes()
        for name in back
    )
    return {"round trip": 0.0 if same else float("inf")}


def _stereo_inputs(arrays: GoldenArrays) -> list[jax.Array]:
    return [jnp.asarray(arrays[name]) for name in ("target", "reference", "temb")]


def _load(
    module: nn.Module,
    init: Callable[[], PyTree],
    rules: tuple[Rule, ...],
    weights: SafetensorsFile,
) -> Network:
    abstract = jax.eval_shape(init)["params"]
    table, shapes = module_table(abstract, rules)
    return Network(module, from_official(weights, table, shapes, source=str(weights.path)), table)
