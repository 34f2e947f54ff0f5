import jax
import jax.numpy as jnp
import numpy as np

from tests.lowered import coarse_products
from worldstereo_jax.geometry.products import product


def test_products_are_exact_on_every_device():
    left, right = (jax.random.normal(jax.random.key(i), (3, 3)) for i in range(2))
    np.testing.assert_allclose(
        product(left, right), np.asarray(left) @ np.asarray(right), rtol=1e-5
    )
    np.testing.assert_allclose(product(left, right[0]), left @ right[0], rtol=1e-6)
    assert not coarse_products(product, left, right)
    assert coarse_products(jnp.matmul, left, right)
