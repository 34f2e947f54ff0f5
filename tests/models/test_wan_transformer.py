"""The plain video transformer against diffusers' WanTransformer3DModel, and its sampler."""

import jax
import numpy as np
import pytest

from tests.models.official_modules import (
    as_torch,
    assert_close,
    channels_first,
    from_torch,
    load_theirs,
    normal,
)
from tests.models.small_model import random_params, run
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.interop.official import official_from_params
from worldstereo_jax.sampling import sample, unipc, unipc_schedule

TEXT_TO_VIDEO = ModelConfig(
    width=24, num_layers=2, num_heads=2, ffn_width=20, text_dim=6, in_channels=4, out_channels=4,
    freq_dim=8, camera_width=None,
)  # fmt: skip
IMAGE_TO_VIDEO = TEXT_TO_VIDEO.replace(in_channels=9, image_width=10)


@pytest.mark.parametrize("config", [TEXT_TO_VIDEO, IMAGE_TO_VIDEO], ids=["t2v", "i2v"])
def test_equals_diffusers(config):
    diffusers = pytest.importorskip("diffusers", reason="the parity extra is not installed")
    params = random_params(config)
    image = config.image_width
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=config.in_channels,
        out_channels=4, text_dim=6, freq_dim=8, ffn_dim=20, num_layers=2, image_dim=image,
        added_kv_proj_dim=24 if image else None,
    )  # fmt: skip
    tensors = {k: np.asarray(v) for k, v in official_from_params(params, config).items()}
    unused = [f"blocks.{i}.attn2.norm_added_q.weight" for i in range(2)] if image else []
    theirs = load_theirs(model, tensors, set(unused) & set(model.state_dict()))
    latent = normal(0, 2, 3, 4, 6, config.in_channels)
    # The official model splits the context by position: text is always its last 512 tokens.
    text, timestep = normal(1, 2, 512, 6), normal(2, 2) + 500
    given = {"latent": latent, "timestep": timestep, "text": text}
    torch_image = None
    if image:
        given["image_tokens"] = normal(3, 2, 257, image)
        torch_image = as_torch(given["image_tokens"])
    expected = theirs(
        channels_first(latent), as_torch(timestep), as_torch(text), torch_image
    ).sample
    assert_close(run(params, config, **given), np.moveaxis(from_torch(expected), 1, -1))


def test_sampler_equals_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="the parity extra is not installed")
    theirs = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    theirs.set_timesteps(7)
    schedule = unipc_schedule(7, 3.0)
    np.testing.assert_array_equal(schedule.timesteps, theirs.timesteps.numpy())
    noise = normal(4, 3, 5)

    def velocity(x, timestep, sigma):
        del sigma
        return 0.3 * x - 0.001 * timestep * jax.numpy.sin(x)

    x = as_torch(noise)
    for timestep in theirs.timesteps:
        v = 0.3 * x - 0.001 * timestep * x.sin()
        x = theirs.step(v, timestep, x, return_dict=False)[0]
    assert_close(sample(velocity, noise, schedule, unipc), from_torch(x))
