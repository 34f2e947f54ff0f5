"""The control branch's entrance."""

import typing

import jax
import jax.numpy as jnp
import numpy as np

from tests.models.small_model import SMALL, apply, init, inputs, normal
from worldstereo_jax.config import ControlConfig
from worldstereo_jax.models.control import ControlEmbedding, MaskEmbedding

CONTROL = typing.cast(ControlConfig, SMALL.control)


def test_the_branch_reads_noise_and_mask_but_not_the_condition():
    layer, kwargs = ControlEmbedding(CONTROL, SMALL.patch_size), inputs()
    latent, control = kwargs["latent"], kwargs["control"]
    params = init(layer, latent, control)
    tokens = apply(layer, params, latent, control)
    assert tokens.shape == (2, 16, CONTROL.width)
    same = apply(layer, params, latent.at[..., 20:].set(7.0), control)
    np.testing.assert_array_equal(tokens, same)
    for changed in (
        (latent.at[..., 19].set(7.0), control),
        (latent, control.replace(render_latent=2 * control.render_latent)),
        (latent, control.replace(render_mask=control.render_mask.at[:, 1, 3, 5].add(9.0))),
        (latent, control.replace(plucker=control.plucker[:, ::-1])),
    ):
        assert float(jnp.abs(apply(layer, params, *changed) - tokens).max()) > 1e-3


def test_video_masks_give_the_first_frame_a_latent_frame_of_its_own():
    layer, x = MaskEmbedding(6, 8, 4, (1, 2, 2)), normal(0, 1, 9, 16, 32, 7)
    params = init(layer, x)
    assert apply(layer, params, x).shape == (1, 3, 1, 2, 6)
    padded = jnp.pad(x, ((0, 0), (3, 0), (0, 0), (0, 0), (0, 0)))
    kernel = params["project"]["kernel"]
    convolved = jax.lax.conv_general_dilated(
        padded, kernel, (4, 8, 8), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    assert convolved.shape == (1, 3, 2, 4, 8)
