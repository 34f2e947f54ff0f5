"""How programs are compiled that tests compare bit by bit or run often, and where they are kept."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from pallas_kernels.compat import quick_compiler_flags, quick_compiler_options
from worldstereo_jax.sampling import compiled, world

# The older emitters, with which tests are compiled where there are any, fuse each program in its
# own way and so round differently; the newer ones round alike.
ALIKE = {"xla_cpu_use_fusion_emitters": True} if quick_compiler_flags() else None

# For programs that run longer than they take to compile, unlike most of those of tests.
OPTIMISED = {"xla_backend_optimization_level": 1}


@contextlib.contextmanager
def optimised_rollouts() -> Iterator[None]:
    """The programs that read and write the memory of a clip are optimised, as they are for users.

    Several clips of full size are made with them, one after the other.
    """
    remember = jax.jit(
        world._remember_frame.__wrapped__, static_argnames="config", compiler_options=OPTIMISED
    )
    with pytest.MonkeyPatch.context() as patch:
        options = {**quick_compiler_options(), **OPTIMISED}
        patch.setattr(compiled, "quick_compiler_options", lambda: options)
        patch.setattr(world, "_remember_frame", remember)
        yield


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


def program(function: Callable[..., object], name: str, *args: object) -> str:
    """The one jitted function of that name which a function calls, as it is traced.

    Numbers that are baked into it are part of it; arrays that are, only by their shapes.
    """
    traced = jax.make_jaxpr(function)(*args)
    (call,) = (eqn for eqn in traced.jaxpr.eqns if eqn.params.get("name") == name)
    return str(call.params["jaxpr"])
