"""Random tensors under official names, and comparison with the libraries' own modules."""

import tempfile
import typing
from pathlib import Path

import jax
import numpy as np
import pytest

from worldstereo_jax.interop.components import ComponentTable
from worldstereo_jax.interop.safetensors_io import write_safetensors


def normal(seed, *shape) -> jax.Array:
    return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def random_tensors(table: ComponentTable, seed=0) -> dict[str, np.ndarray]:
    """Values of moderate size for every official tensor of a component."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in table.official_shapes().items():
        array = generator.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))
        is_factor = len(shape) == 1 and name.endswith(("weight", "lambda1"))
        tensors[name] = (array + (is_factor or name.endswith("gamma"))).astype(np.float32)
    return tensors


def our_params(table: ComponentTable, tensors) -> typing.Any:
    # Not by jnp.asarray, which compiles a program for every shape.
    return jax.device_put(table.params(tensors))


def assert_round_trip(table: ComponentTable, tensors, params) -> None:
    back = table.tensors(params)
    assert set(back) == set(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)


def load_theirs(model: typing.Any, tensors, unused=()) -> typing.Any:
    """A torch module with our tensors; the names it has beyond ours must be among `unused`.

    A module of transformers reads them from a folder, as it reads a published checkpoint: its own
    names differ from those of the files since version 5.
    """
    torch = pytest.importorskip("torch")
    if type(model).__module__.startswith("transformers."):
        with tempfile.TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            write_safetensors(Path(folder) / "model.safetensors", tensors, {"format": "pt"})
            loaded, found = type(model).from_pretrained(folder, output_loading_info=True)
        assert not found["unexpected_keys"]
        assert not found["mismatched_keys"]
        assert set(found["missing_keys"]) <= set(unused)
        return loaded.eval()
    model = model.eval()
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in tensors}
    assert sorted(own) == sorted(unused)
    given = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    model.load_state_dict({**own, **given})
    return model


def as_torch(x) -> typing.Any:
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.array(x))


def channels_first(x) -> typing.Any:
    return as_torch(x).movedim(-1, 1)


def from_torch(x) -> np.ndarray:
    return x.detach().numpy()


def assert_close(found, expected, bound=1e-4):
    found = np.asarray(found)
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < bound, error
