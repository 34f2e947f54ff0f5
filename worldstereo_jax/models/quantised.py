"""The video transformer with the weights of its layers in 8 bits, through qwix.

Weights only: activations, norms, modulation and embeddings keep their types, and products are
computed in the model's. Of a layer's matrices every output channel has a scale of its own.
"""

import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding

from pallas_kernels import AttentionSharding
from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.worldstereo import WorldStereo, smallest_inputs

KINDS = {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}
"""Names of the types that weights can be kept in."""

_MATRICES = (
    r".*(attention|ffn)/(query|key|value|image_key|image_value|out|up|down|gate)|.*/residual"
)
"""Paths of the linear maps inside the layers: nearly all of a large model's bytes."""


def quantised_model(
    config: ModelConfig,
    kind: str,
    sharding: AttentionSharding | None = None,
    stream_sharding: NamedSharding | None = None,
) -> WorldStereo:
    """`WorldStereo(config, sharding, stream_sharding)` for parameters from `quantise_params`.

    Gradients run through it, to inputs and to what is not in 8 bits, such as adapters.

    Args:
        config: sizes and choices.
        kind: one of `KINDS`.
        sharding, stream_sharding: see `WorldStereo`.

    Raises:
        InputError: for another kind, or when qwix is not installed.
    """
    qwix = _qwix(kind)
    rules = [qwix.QuantizationRule(module_path=_MATRICES, weight_qtype=KINDS[kind])]
    model = WorldStereo(config, sharding, stream_sharding)
    return qwix.quantize_model(model, qwix.PtqProvider(rules))


def quantiser(config: ModelConfig, kind: str) -> Callable[[str, jax.Array], PyTree]:
    """What brings one parameter of `WorldStereo(config)` into the form `quantised_model` takes.

    The function takes a parameter's path, joined by "/", and its array, or of a stack the array of
    one layer. Matrices become 8 bits with their scales, all else stays what it is.

    Args:
        config: sizes.
        kind: one of `KINDS`.

    Raises:
        InputError: as `quantised_model` does.
    """
    qwix, expected = _qwix(kind), _expected(config, kind)

    # Compiled once for all layers of a stack.
    @functools.cache
    def compiled(path: str) -> Callable[[jax.Array], PyTree]:
        like = expected[path]
        if "/layers/" in path:
            like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), like)
        return jax.jit(lambda array: qwix.quantize_params({"w": array}, {"w": like})["w"])

    def quantise(path: str, array: jax.Array) -> PyTree:
        if isinstance(expected[path], jax.ShapeDtypeStruct):
            return array
        return compiled(path)(array)

    return quantise


def quantised_paths(config: ModelConfig, kind: str) -> set[str]:
    """Paths of the parameters that `quantiser` brings into 8 bits.

    Args:
        config: sizes.
        kind: one of `KINDS`.

    Raises:
        InputError: as `quantised_model` does.
    """
    expected = _expected(config, kind)
    return {p for p, like in expected.items() if not isinstance(like, jax.ShapeDtypeStruct)}


@functools.lru_cache(maxsize=4)
def _expected(config: ModelConfig, kind: str) -> dict[str, PyTree]:
    """The form of every parameter, by path."""
    model = quantised_model(config, kind)
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), **smallest_inputs(config)))
    return typing.cast(dict[str, PyTree], flatten_dict(tree["params"], sep="/"))


def quantise_params(params: PyTree, config: ModelConfig, kind: str) -> PyTree:
    """Parameters of `WorldStereo(config)` as `quantised_model` takes them.

    One array after the other, and each is let go when its 8 bits stand, so that beyond the
    parameters themselves only the largest array needs room. `params` is emptied on the way.
    `interop.pretrained.from_pretrained` does the same while it reads, without that room.

    Args:
        params: nested dict of arrays; emptied.
        config: sizes.
        kind: one of `KINDS`.

    Raises:
        InputError: as `quantised_model` does.
    """
    quantise = quantiser(config, kind)
    flat = typing.cast(dict[str, jax.Array], flatten_dict(params, sep="/"))
    params.clear()
    found = {}
    for path in list(flat):
        array = flat.pop(path)
        if "/layers/" in path:
            # A stack: scales are those of each layer, not of all layers together.
            found[path] = jax.vmap(functools.partial(quantise, path))(array)
        else:
            found[path] = quantise(path, array)
    return typing.cast(PyTree, unflatten_dict(found, sep="/"))


def _qwix(kind: str) -> typing.Any:
    if kind not in KINDS:
        raise InputError(f"weights of kind {kind!r}, expected one of {', '.join(KINDS)}")
    try:
        import qwix  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "weights in 8 bits need the quantise extra: pip install worldstereo-jax[quantise]"
        ) from error
    return qwix
