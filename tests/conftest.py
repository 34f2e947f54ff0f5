"""Settings that every test runs under."""

import atexit
import collections
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Set before jax is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test has compiled another one reads, also in the other worker processes, which inherit
# the setting.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Where in the source an operation comes from nobody asks: tracing takes a fifth less without.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax
import jaxtyping
import pytest

from pallas_kernels.compat import quick_compiler_flags

# Set before jax is asked for a device: eight simulated ones, so that sharding is tested on any
# machine; and little optimisation, since tests spend far more time compiling than computing.
_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *quick_compiler_flags(),
)
_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [_GIVEN, *(flag for flag in _FLAGS if flag.split("=")[0] not in _GIVEN)]
).strip()

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many small objects, few of which are ever part of a cycle.
gc.set_threshold(50_000, 20, 10)

# Every compiled program holds some mappings of memory, of which Linux allows a process 65,530; the
# compiler is killed at the next one. Half the tests come near that.
_MOST_MAPPINGS = 40_000

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config):
    # Of xdist: it would begin with the files of most tests, and end with long ones of one or two.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config, items):
    """Files with slow tests first, so that no worker of xdist is left alone with one at the end."""
    if hasattr(config, "workerinput"):
        slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Forget the compiled programs of earlier files when there are too many; the cache has them."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > _MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """For files that make several clips of full size: see `tests.compiling`."""
    from tests import compiling

    with compiling.optimised_rollouts():
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference outputs and real scenes beside the checkout."""
    if not (SHARED / "goldens").is_dir():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def goldens_dir(shared_dir: Path) -> Path:
    return shared_dir / "goldens"


@pytest.fixture
def unchecked():
    """Annotations are not checked, as outside of tests: the package's own words are heard."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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
def cameras():
    from tests import small_world

    return small_world.cameras()


@pytest.fixture(scope="session")
def grown():
    from tests import small_world

    return small_world.grown()


@pytest.fixture(scope="session")
def revisit():
    from tests import small_world

    return small_world.revisit()


@pytest.fixture(scope="session")
def gather():
    from tests import small_world

    return small_world.gather()


@pytest.fixture(scope="session")
def gathered():
    from tests import small_world

    return small_world.gathered()


@pytest.fixture(scope="session")
def denoised():
    from tests import small_world

    return small_world.denoised
