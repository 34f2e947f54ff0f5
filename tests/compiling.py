"""How programs are compiled whose outputs a test compares bit by bit, and where they are kept."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from pallas_kernels.compat import quick_compiler_flags

# The older emitters, with which tests are compiled where there are any, fuse each program in its
# own way and so round differently; the newer ones round alike.
ALIKE = {"xla_cpu_use_fusion_emitters": True} if quick_compiler_flags() else None


@contextlib.contextmanager
def compilation_cache_at(folder: Path) -> Iterator[None]:
    """jax's persistent cache in a folder, of all programs however soon they are compiled."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
