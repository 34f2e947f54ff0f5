"""LPIPS (Zhang et al. 2018, version 0.1, AlexNet), when its weights are given as a file.

The weights are not shipped. The file is a safetensors copy of the published metric's own state
dictionary: `net.slice1.0`, `net.slice2.3`, `net.slice3.6`, `net.slice4.8`, `net.slice5.10` (weight
[out, in, k, k] and bias) for the five convolutions and `lin0.model.1.weight` ..
`lin4.model.1.weight` [1, channels, 1, 1] for the learned channel weights.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.safetensors_io import SafetensorsFile

# Per convolution: name, kernel shape, stride, padding, and whether a 3x3 max-pool goes before it.
_LAYERS = (
    ("net.slice1.0", (64, 3, 11, 11), 4, 2, False),
    ("net.slice2.3", (192, 64, 5, 5), 1, 2, True),
    ("net.slice3.6", (384, 192, 3, 3), 1, 1, True),
    ("net.slice4.8", (256, 384, 3, 3), 1, 1, False),
    ("net.slice5.10", (256, 256, 3, 3), 1, 1, False),
)
# The ImageNet statistics carried over from [0, 1] to images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
SMALLEST = 31


@struct.dataclass
class LpipsWeights:
    """Parameters of the metric, one entry per layer.

    kernels: [out, in, k, k]; biases: [out]; channel_weights: [out], all float32.
    """

    kernels: tuple[Any, ...]
    biases: tuple[Any, ...]
    channel_weights: tuple[Any, ...]


def load_lpips(path: str | os.PathLike[str]) -> LpipsWeights:
    """Read the weights; tensors beyond those named above are not looked at.

    Raises InputError when the file is missing or damaged, or a tensor is missing or misshapen.
    """
    file = SafetensorsFile(path)

    def read(name: str, shape: tuple[int, ...]) -> Array:
        if name not in file:
            raise InputError(f"{Path(path)}: tensor {name} is missing")
        if file.shapes[name] != shape:
            raise InputError(
                f"{Path(path)}: tensor {name} has shape {list(file.shapes[name])}, "
                f"expected {list(shape)}"
            )
        return jnp.asarray(file[name], jnp.float32)

    outs = [shape[0] for _, shape, *_ in _LAYERS]
    return LpipsWeights(
        kernels=tuple(read(f"{name}.weight", shape) for name, shape, *_ in _LAYERS),
        biases=tuple(read(f"{layer[0]}.bias", layer[1][:1]) for layer in _LAYERS),
        channel_weights=tuple(
            read(f"lin{i}.model.1.weight", (1, out, 1, 1)).reshape(out)
            for i, out in enumerate(outs)
        ),
    )


def lpips(
    weights: LpipsWeights,
    a: Float[Array | ndarray, "*batch h w 3"],
    b: Float[Array | ndarray, "*batch h w 3"],
) -> Float[Array, "*batch"]:
    """Return the perceptual distance of images [*batch, h, w, 3] in [-1, 1]; 0 is equal.

    Features of five AlexNet layers after ReLU are scaled to unit length per pixel; their squared
    differences are weighted per channel, averaged over pixels and summed over layers.

    Raises InputError when an image is smaller than 31 pixels, where a layer would be empty.
    """
    *batch, height, width, _ = a.shape
    if min(height, width) < SMALLEST:
        raise InputError(f"LPIPS needs images of {SMALLEST} pixels each way, not {height}x{width}")
    total = jnp.zeros(tuple(batch), jnp.float32).reshape(-1)
    pairs = zip(_features(weights, a), _features(weights, b), weights.channel_weights, strict=True)
    for x, y, channel in pairs:
        difference = jnp.square(_unit(x) - _unit(y)) * channel[None, :, None, None]
        total = total + jnp.mean(jnp.sum(difference, axis=1), axis=(-2, -1))
    return total.reshape(tuple(batch))


def _features(weights: LpipsWeights, image: Array | ndarray) -> list[Float[Array, "n c fh fw"]]:
    shift, scale = (jnp.array(x)[None, :, None, None] for x in (_SHIFT, _SCALE))
    x = jnp.moveaxis(jnp.asarray(image, jnp.float32), -1, -3)
    x = (x.reshape(-1, *x.shape[-3:]) - shift) / scale
    found = []
    for (_, _, stride, pad, pool), kernel, bias in zip(
        _LAYERS, weights.kernels, weights.biases, strict=True
    ):
        if pool:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), "VALID")
        x = lax.conv_general_dilated(
            x, kernel, (stride, stride), [(pad, pad)] * 2, precision=lax.Precision.HIGHEST
        )
        x = jax.nn.relu(x + bias[None, :, None, None])
        found.append(x)
    return found


def _unit(x: Float[Array, "n c fh fw"]) -> Float[Array, "n c fh fw"]:
    return x / (jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True)) + 1e-10)
