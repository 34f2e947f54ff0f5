"""The control branch's entrance."""

import functools
import typing

import jax
import numpy as np

from tests.models.small_model import SMALL, apply, init, inputs, normal
from worldstereo_jax.config import ControlConfig
from worldstereo_jax.models.control import ControlEmbedding, MaskEmbedding

CONTROL = typing.cast(ControlConfig, SMALL.control)


def test_the_branch_reads_noise_and_mask_but_not_the_condition():
    layer, kwargs = ControlEmbedding(CONTROL, SMALL.patch_size), inputs()
    latent, control = kwargs["latent"], kwargs["control"]
    params = init(layer, latent, control)

    def output(latent, **changed):
        return np.asarray(apply(layer, params, latent, control.replace(**changed)))

    tokens = output(latent)
    assert tokens.shape == (2, 16, CONTROL.width)
    other, noise, mask = (np.array(x) for x in (latent, latent, control.render_mask))
    other[..., 20:] = noise[..., 19] = 7.0
    np.testing.assert_array_equal(tokens, output(other))
    mask[:, 1, 3, 5] += 9.0
    for changed in (
        output(noise),
        output(latent, render_latent=2 * np.asarray(control.render_latent)),
        output(latent, render_mask=mask),
        output(latent, plucker=np.asarray(control.plucker)[:, ::-1]),
    ):
        assert np.abs(changed - tokens).max() > 1e-3


def test_video_masks_give_the_first_frame_a_latent_frame_of_its_own():
    layer, x = MaskEmbedding(6, 8, 4, (1, 2, 2)), normal(0, 1, 9, 16, 32, 7)
    params = init(layer, x)
    assert apply(layer, params, x).shape == (1, 3, 1, 2, 6)
    padded = np.pad(x, ((0, 0), (3, 0), (0, 0), (0, 0), (0, 0)))
    kernel = params["project"]["kernel"]
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(4, 8, 8),
        padding="VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    convolved = jax.eval_shape(convolve, padded, kernel)
    assert convolved.shape == (1, 3, 2, 4, 8)
