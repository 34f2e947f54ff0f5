import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.sampling.guided_loop import LoopChoices, sample_guided
from worldstereo_jax.sampling.schedules import unipc_schedule

NOISE = jax.random.normal(jax.random.key(0), (1, 2, 2, 2, 3))
TEXT, NEGATIVE = (jnp.full((1, 4, 3), value) for value in (0.7, -0.4))


def velocity(text, x, timestep, sigma):
    """Another one for every text, the same for every sample of a batch."""
    assert len(text) == len(x)
    return jnp.sin(x) * text.mean((1, 2))[:, None, None, None, None] + sigma + timestep / 1000


def made(guidance, negative=NEGATIVE, scale=3.0):
    choices = LoopChoices(unipc_schedule(3), guidance=guidance, guidance_scale=scale)
    return sample_guided(choices, velocity, TEXT, negative, NOISE)


def test_both_forms_of_guidance_agree_and_lead_away_from_the_negative_text():
    batched, alone = made("batched"), made("none")
    np.testing.assert_allclose(made("two-pass"), batched, rtol=1e-5, atol=1e-6)
    assert np.abs(batched - alone).max() > 0.1
    np.testing.assert_allclose(made("batched", scale=1.0), alone, rtol=1e-5, atol=1e-6)


def test_without_guidance_the_negative_text_is_not_read():
    assert np.isfinite(made("none", jnp.full_like(NEGATIVE, jnp.nan))).all()


@pytest.mark.parametrize("choice", [{"guidance": "double"}, {"solver": "heun"}])
def test_an_unknown_choice_is_named(choice):
    name, value = next(iter(choice.items()))
    with pytest.raises(InputError, match=f"{name} is '{value}', expected one of"):
        LoopChoices(unipc_schedule(2), **choice)
