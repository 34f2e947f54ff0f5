"""Settings that every test runs under."""

import os
from pathlib import Path

# Eight simulated devices, set before jax starts, so that sharding is tested on any machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference outputs and real scenes beside the checkout."""
    if not (SHARED / "goldens").is_dir():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def goldens_dir(shared_dir: Path) -> Path:
    return shared_dir / "goldens"


# The small world takes seconds to compile, so all tests of a worker share one. Imported when asked
# for: most tests need none of it.
@pytest.fixture(scope="session")
def world():
    from tests import small_world

    return small_world.WORLD


@pytest.fixture(scope="session")
def params():
    from tests import small_world

    return small_world.params()


@pytest.fixture(scope="session")
def scene():
    from tests import small_world

    return small_world.scene()


@pytest.fixture(scope="session")
def memory():
    from tests import small_world

    return small_world.memory()


@pytest.fixture(scope="session")
def cameras(scene):
    from worldstereo_jax.sampling.world import Cameras

    return Cameras(w2c=scene["w2c"], intrinsics=scene["intrinsics"])
