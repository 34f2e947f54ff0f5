"""Outputs of the official modules, within 1e-4 of their largest value (float32)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small_model import apply
from worldstereo_jax.interop.official import (
    from_official,
    infer_config,
    module_table,
    params_from_official,
)
from worldstereo_jax.interop.official_names import MASK_EMBEDDING_RULES, STEREO_BLOCK_RULES
from worldstereo_jax.interop.safetensors_io import SafetensorsFile
from worldstereo_jax.models.control import ControlInput, MaskEmbedding
from worldstereo_jax.models.stereo_v1 import StereoBlock
from worldstereo_jax.models.worldstereo import References, WorldStereo

TOLERANCE = 1e-4


def channels_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def three(sizes):
    first, second, third = (int(size) for size in sizes)
    return first, second, third


def relative_error(found, expected):
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("weights", "arrays"),
    [
        ("camera_model", ["camera_model_io"]),
        ("memory_model", ["memory_model_io"]),
        ("memory_model", ["memory_model_io", "memory_model_noupdate_io"]),
    ],
)
@pytest.mark.row("S20")
def test_model_equals_the_official_output(goldens_dir, weights, arrays):
    tensors = SafetensorsFile(goldens_dir / f"{weights}.safetensors")
    z = {}
    for name in arrays:
        z |= np.load(goldens_dir / f"{name}.npz", allow_pickle=False)
    config = infer_config(
        tensors.shapes,
        num_heads=int(z["num_heads"]),
        control_num_heads=int(z["control_num_heads"]),
        update_ref=bool(z["update_ref"]),
        mask_downsample=int(z["mask_downsample"]),
        patch_size=three(z["patch_size"]),
        source=str(tensors.path),
    )
    memory = {}
    if "reference_latent" in z:
        batch = z["reference_latent"].shape[0]
        index = np.broadcast_to(z["ref_index"][None], (batch, z["ref_index"].size))
        memory["references"] = References(
            latent=channels_last(z["reference_latent"]),
            index=jnp.asarray(index, jnp.int32),
            camera=jnp.asarray(z["camera_qt_ref"]),
        )
        memory["camera"] = jnp.asarray(z["camera_qt"])
    control = ControlInput(
        render_latent=channels_last(z["render_latent"]),
        render_mask=channels_last(z["render_mask"]),
        plucker=channels_last(z["camera_embedding"]),
    )
    out = jax.jit(lambda p, *args, **kw: WorldStereo(config).apply({"params": p}, *args, **kw))(
        params_from_official(tensors, config),
        channels_last(z["hidden_states"]),
        jnp.asarray(z["timestep"]),
        jnp.asarray(z["encoder_hidden_states"]),
        jnp.asarray(z["encoder_hidden_states_image"]),
        control=control,
        **memory,
    )
    assert relative_error(out, np.moveaxis(z["out_sample"], 1, -1)) < TOLERANCE


def load_module(module, rules, path, *inputs):
    abstract = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]
    table, shapes = module_table(abstract, rules)
    return from_official(SafetensorsFile(path), table, shapes, source=str(path))


def test_mask_embedding_of_video_latents(goldens_dir):
    z = np.load(goldens_dir / "mask_embedding_v1_io.npz", allow_pickle=False)
    path = goldens_dir / "mask_embedding_v1.safetensors"
    shapes = SafetensorsFile(path).shapes
    mid, _, downsample, *_ = shapes["mask_proj.0.weight"]
    assert downsample == z["mask_downsample"]
    width, _, *patch = shapes["mask_zero_proj.weight"]
    module = MaskEmbedding(width, mid, downsample, three(patch))
    x = channels_last(z["add_inputs"])
    out = apply(module, load_module(module, MASK_EMBEDDING_RULES, path, x), x)
    assert relative_error(out.reshape(1, -1, width), z["out_tokens"]) < TOLERANCE


@pytest.mark.row("S20")
def test_stereo_block_of_frame_pairs(goldens_dir):
    z = np.load(goldens_dir / "stereo_block_v1_io.npz", allow_pickle=False)
    path = goldens_dir / "stereo_block_v1.safetensors"
    grid = three(z["grid"])
    module = StereoBlock(int(z["num_heads"]), SafetensorsFile(path).shapes["ffn.0.weight"][0])
    inputs = [jnp.asarray(z[name]) for name in ("target", "reference", "temb")]

    class Bound:
        def init(self, key, *inputs):
            return module.init(key, *inputs, grid)

    params = load_module(Bound(), STEREO_BLOCK_RULES, path, *inputs)
    target, reference = apply(module, params, *inputs, grid)
    assert relative_error(target, z["out_target"]) < TOLERANCE
    assert relative_error(reference, z["out_reference"]) < TOLERANCE
