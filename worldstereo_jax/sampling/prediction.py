"""What the network's output means: how it becomes a velocity, and what it is trained towards.

All use the flow-matching path (Lipman et al. 2023, "Flow Matching", optimal-transport path with
sigma_min 0): x = (1 - sigma) x0 + sigma noise, whose velocity is dx/dsigma = noise - x0, hence
x0 = x - sigma v.

| parametrisation | output | x0 | velocity | training target |
| --- | --- | --- | --- | --- |
| flow (official) | v | x - sigma v | v | noise - x0 |
| anchored | x0 - anchor | anchor + output | (x - anchor - output) / sigma | x0 - anchor |

The anchored form starts a small network at a useful image: with an output of zero the sampler
returns the anchor, such as the memory's warped latent, and training only corrects it. Its paths
also start there (`anchored_source`): the source of the flow is the anchor with a little noise, a
data-dependent coupling (Albergo et al. 2023, "Stochastic interpolants with data-dependent
couplings"; Liu et al. 2023, "I2SB"), so that what is known is never drowned in noise.
"""

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float


def add_noise(
    x0: Float[Array, "*shape"], noise: Float[Array, "*shape"], sigma: Float[Array, "*b"]
) -> Float[Array, "*shape"]:
    """Return (1 - sigma) x0 + sigma noise; `sigma` in [0, 1], a scalar or one per batch entry."""
    sigma = _over_batch(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


# Noise on the anchor at the start of a path, in units of the normalised latents' deviation.
SOURCE_NOISE = 0.2


def anchored_source(
    anchor: Float[Array, "*shape"], noise: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return where anchored paths start, at sigma 1: the anchor and `SOURCE_NOISE` of the noise.

    It takes the place of the noise in `add_noise` and in `sample`.
    """
    return anchor + SOURCE_NOISE * noise


def flow_x0(
    velocity: Float[Array, "*shape"], x: Float[Array, "*shape"], sigma: Float[Array, "*b"]
) -> Float[Array, "*shape"]:
    """Return the x0 that a velocity at x stands for: x - sigma v; `sigma` as in `add_noise`."""
    return x - _over_batch(sigma, x) * velocity


def flow_target(
    x0: Float[Array, "*shape"], noise: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return the velocity that a network is trained to predict: noise - x0."""
    return noise - x0


def anchored_velocity(
    output: Float[Array, "*shape"],
    x: Float[Array, "*shape"],
    sigma: Float[Array, "*b"],
    anchor: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """Return the velocity of a network that predicts the residual x0 - anchor.

    x0 = anchor + output, and from x = x0 + sigma v follows v = (x - x0) / sigma. A step to
    sigma 0 returns x0 to rounding: x - sigma v = x0 (exactly in exact arithmetic).

    output, x, anchor: same shape, batch first when `sigma` is not a scalar.
    sigma: in (0, 1], a scalar or one per batch entry; never 0, where no step starts.
    """
    return (x - (anchor + output)) / _over_batch(sigma, x)


def anchored_target(
    x0: Float[Array, "*shape"], anchor: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return the training target of `anchored_velocity`: x0 - anchor, at every noise level."""
    return x0 - anchor


def _over_batch(sigma: Array, x: Array) -> Array:
    """Append axes to a scalar or [b] `sigma` until it has the rank of `x`."""
    sigma = jnp.asarray(sigma)
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))
