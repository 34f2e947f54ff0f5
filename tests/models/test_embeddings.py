"""The entrances of the transformer: what is a vector per sample or frame is computed exactly."""

import jax
import jax.numpy as jnp
import pytest

from tests.lowered import coarse_products
from worldstereo_jax.models.control import AdaptiveNorm
from worldstereo_jax.models.embeddings import CameraEmbedding, TimeEmbedding


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (TimeEmbedding(16, 8), [(2,)]),
        (CameraEmbedding(16), [(1, 3, 7)]),
        (AdaptiveNorm(jnp.bfloat16), [(1, 3, 8), (1, 16)]),
    ],
)
def test_time_and_cameras_are_not_rounded(module, shapes):
    """A TPU's product of bfloat16 would hold a translation of 1 m to within 4 mm."""
    inputs = [jax.ShapeDtypeStruct(sizes, jnp.float32) for sizes in shapes]
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    assert not coarse_products(module.apply, params, *inputs)
    # Nor with a low-rank adapter.
    adapted = jax.tree.map(lambda x: x, params)
    for layer in adapted["params"].values():
        if "kernel" in layer:
            (rows, columns), rank = layer["kernel"].shape, 2
            a, b = ((rows, rank), (rank, columns))
            layer["adapter"] = {
                name: jax.ShapeDtypeStruct(sizes, jnp.float32)
                for name, sizes in (("a", a), ("b", b))
            }
    assert not coarse_products(module.apply, adapted, *inputs)
