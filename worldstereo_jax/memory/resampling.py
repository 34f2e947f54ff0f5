"""Reading features between pixels without mixing two surfaces."""

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int


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
    smooth: Bool[Array, "v h w"],
    view: Int[Array, "*n"],
    pixels: Float[Array, "*n 2"],
    planes: Float[Array, "*n 3"],
    *,
    tolerance: float,
) -> Float[Array, "*n c"]:
    """Samples of `features` at `pixels` (x, y) of view `view`, each from one surface only.

    Where `smooth` says that the pixels around lie on one surface the sample is bicubic.
    Elsewhere it is the bilinear mean of those of the four nearest pixels whose inverse depth lies
    within `tolerance` of the tangent plane meant (`planes`, covectors as in `surface`), or close
    to the nearest pixel where none does. Beyond the border the border is repeated.
    """
    v, h, w, c = features.shape
    table, depths = features.reshape(v * h * w, c), inverse.reshape(v * h * w)
    x, y = pixels[..., 0] - 0.5, pixels[..., 1] - 0.5
    x0, y0 = jnp.floor(x), jnp.floor(y)
    columns = [jnp.clip(x0.astype(jnp.int32) + i, 0, w - 1) for i in (-1, 0, 1, 2)]
    rows = [jnp.clip(y0.astype(jnp.int32) + j, 0, h - 1) for j in (-1, 0, 1, 2)]
    cubic_x, cubic_y = cubic_weights(x - x0), cubic_weights(y - y0)
    hats = {}
    for j, hat_y in ((1, 1.0 - (y - y0)), (2, y - y0)):
        for i, hat_x in ((1, 1.0 - (x - x0)), (2, x - x0)):
            shown = depths.at[(view * h + rows[j]) * w + columns[i]].get(mode="promise_in_bounds")
            meant = (
                planes[..., 0] * (columns[i].astype(jnp.float32) + 0.5)
                + planes[..., 1] * (rows[j].astype(jnp.float32) + 0.5)
                + planes[..., 2]
            )
            same = jnp.abs(shown - meant) <= tolerance * meant
            # With every pixel off the plane the small constant leaves the nearest to decide.
            hats[j, i] = (hat_x * hat_y) ** jnp.where(same, 1, 4) * jnp.where(same, 1.0, 1e-6)
    row = jnp.clip(jnp.floor(pixels[..., 1]).astype(jnp.int32), 0, h - 1)
    column = jnp.clip(jnp.floor(pixels[..., 0]).astype(jnp.int32), 0, w - 1)
    nearest = (view * h + row) * w + column
    whole = smooth.reshape(v * h * w).at[nearest].get(mode="promise_in_bounds")
    total = sum(hats.values())
    found = jnp.zeros((*pixels.shape[:-1], c), features.dtype)
    for j in range(4):
        for i in range(4):
            linear = hats[j, i] / total if (j, i) in hats else 0.0
            weight = jnp.where(whole, cubic_x[i] * cubic_y[j], linear)
            entry = table.at[(view * h + rows[j]) * w + columns[i]].get(mode="promise_in_bounds")
            found = found + entry * weight[..., None].astype(features.dtype)
    return found
