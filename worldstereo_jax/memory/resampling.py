"""Reading features between pixels without mixing two surfaces."""

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, Int


def cubic_weights(offset: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], ...]:
    """Weights of the four samples at -1, 0, 1, 2 for a position `offset` in [0, 1] (Keys 1981).

    Keys' interpolating kernel with a = -1/2: exact for quadratics, and sharper than the
    bilinear hat, whose loss adds up when a picture is read again and again.
    """
    t, t2, t3 = offset, offset * offset, offset * offset * offset
    return (
        0.5 * (-t3 + 2.0 * t2 - t),
        0.5 * (3.0 * t3 - 5.0 * t2 + 2.0),
        0.5 * (-3.0 * t3 + 4.0 * t2 + t),
        0.5 * (t3 - t2),
    )


def sample_surface(
    features: Float[Array, "v h w c"],
    inverse: Float[Array, "v h w"],
    view: Int[Array, "*n"],
    pixels: Float[Array, "*n 2"],
    planes: Float[Array, "*n 3"],
    *,
    tolerance: float,
) -> Float[Array, "*n c"]:
    """Bicubic samples of `features` at `pixels` (x, y) of view `view`, from one surface only.

    `planes` are the tangent planes (inverse depth covectors in that view's pixels) of the
    surfaces meant. A sample whose 4x4 support leaves its plane by more than `tolerance` of its
    inverse depth is the bilinear mean of those of the four nearest pixels that stay on it, or
    the nearest pixel where none does. Beyond the border the border is repeated.
    """
    v, h, w, c = features.shape
    table = jnp.concatenate([features, inverse[..., None]], -1).reshape(v * h * w, c + 1)
    x, y = pixels[..., 0] - 0.5, pixels[..., 1] - 0.5
    x0, y0 = jnp.floor(x), jnp.floor(y)
    wx, wy = cubic_weights(x - x0), cubic_weights(y - y0)
    hat_x, hat_y = (1.0 - (x - x0), x - x0), (1.0 - (y - y0), y - y0)
    cubic = inner = jnp.zeros((*pixels.shape[:-1], c), features.dtype)
    inner_weight = jnp.zeros(pixels.shape[:-1], jnp.float32)
    whole = jnp.ones(pixels.shape[:-1], bool)
    for j in range(4):
        row = jnp.clip(y0.astype(jnp.int32) + (j - 1), 0, h - 1)
        for i in range(4):
            column = jnp.clip(x0.astype(jnp.int32) + (i - 1), 0, w - 1)
            entry = table.at[(view * h + row) * w + column].get(mode="promise_in_bounds")
            expected = (
                planes[..., 0] * (column + 0.5) + planes[..., 1] * (row + 0.5) + planes[..., 2]
            )
            same = jnp.abs(entry[..., c] - expected) <= tolerance * expected
            cubic = cubic + entry[..., :c] * (wx[i] * wy[j])[..., None]
            whole &= same
            if i in (1, 2) and j in (1, 2):
                # The constant keeps the nearest pixel when the support is empty.
                share = jnp.where(same, hat_x[i - 1] * hat_y[j - 1] + 1e-4, 0.0)
                inner = inner + entry[..., :c] * share[..., None]
                inner_weight = inner_weight + share
    row = jnp.clip(jnp.floor(pixels[..., 1]).astype(jnp.int32), 0, h - 1)
    column = jnp.clip(jnp.floor(pixels[..., 0]).astype(jnp.int32), 0, w - 1)
    nearest = table.at[(view * h + row) * w + column].get(mode="promise_in_bounds")[..., :c]
    linear = jnp.where(
        (inner_weight > 0)[..., None],
        inner / jnp.maximum(inner_weight, 1e-8)[..., None],
        nearest,
    )
    return jnp.where(whole[..., None], cubic, linear)
