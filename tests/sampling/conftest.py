import jax
import pytest

from worldstereo_jax.sampling.rollout import make_rollout


@pytest.fixture(scope="session")
def rollout(world):
    return make_rollout(world)


@pytest.fixture(scope="session")
def finished(rollout, params, memory, cameras):
    """A clip and the memory after it."""
    return rollout(params, memory, cameras, jax.random.key(0))
