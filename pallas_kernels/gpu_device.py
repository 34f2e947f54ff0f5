"""What the GPU kernels need of the device and of jax, and why they cannot run without it."""

import jax

from pallas_kernels.target_device import Target

__all__ = ["cannot_run_mosaic_gpu", "cannot_run_triton"]

AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)
MOSAIC_GPU_JAX = (0, 11)


def _capability(target: Target) -> tuple[int, int] | str:
    """(major, minor), or why there is none."""
    if target.platform != "gpu":
        return f"it needs an NVIDIA GPU, and this is for {target.platform}"
    if target.capability is None:
        return f"it needs an NVIDIA GPU of known compute capability, and this is for {target.kind}"
    return target.capability


def cannot_run_triton(target: Target) -> str:
    """Why the Triton route cannot run on a device; empty when it can."""
    found = _capability(target)
    if isinstance(found, str):
        return found
    if found < AMPERE:
        return f"it needs compute capability 8.0 (Ampere) or later, and this is {_dotted(found)}"
    return ""


def cannot_run_mosaic_gpu(target: Target) -> str:
    """Why the Hopper kernels cannot run on a device; empty when they can."""
    found = _capability(target)
    if isinstance(found, str):
        return found
    if not HOPPER <= found < BLACKWELL:
        return f"it needs compute capability 9.x (Hopper), and this is {_dotted(found)}"
    if jax.__version_info__[:2] < MOSAIC_GPU_JAX:
        return f"it needs jax {_dotted(MOSAIC_GPU_JAX)} or later, and this is {jax.__version__}"
    return ""


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
