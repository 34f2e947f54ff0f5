"""Settings of the kernel tests."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _compile_fast_and_forget() -> Iterator[None]:
    """Programs are small and many here, and run once or twice: optimising them takes longer.

    Kept to the end of the session they would take gigabytes.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
