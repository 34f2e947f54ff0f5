"""Settings of the kernel tests."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs() -> Iterator[None]:
    """Programs are small and many here; kept to the end of the session they take gigabytes."""
    yield
    jax.clear_caches()
