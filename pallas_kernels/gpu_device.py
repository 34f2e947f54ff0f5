"""What the GPU kernels need of the device and of jax, and why they cannot run without it."""

import jax

__all__ = ["cannot_run_mosaic_gpu", "cannot_run_triton", "compute_capability"]

AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)
MOSAIC_GPU_JAX = (0, 11)


def compute_capability() -> tuple[int, int] | str:
    """(major, minor) of jax's default device, or why there is none."""
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda"):
        return f"it needs an NVIDIA GPU, and jax runs on {device.platform} here"
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    if not (major.isdigit() and minor.isdigit()):
        return f"it needs an NVIDIA GPU, and {device.device_kind} is none"
    return int(major), int(minor)


def cannot_run_triton() -> str:
    """Why the Triton route cannot run on jax's default device; empty when it can."""
    found = compute_capability()
    if isinstance(found, str):
        return found
    if found < AMPERE:
        return f"it needs compute capability 8.0 (Ampere) or later, and this is {_dotted(found)}"
    return ""


def cannot_run_mosaic_gpu() -> str:
    """Why the Hopper kernels cannot run on jax's default device; empty when they can."""
    found = compute_capability()
    if isinstance(found, str):
        return found
    if not HOPPER <= found < BLACKWELL:
        return f"it needs compute capability 9.x (Hopper), and this is {_dotted(found)}"
    if jax.__version_info__[:2] < MOSAIC_GPU_JAX:
        return f"it needs jax {_dotted(MOSAIC_GPU_JAX)} or later, and this is {jax.__version__}"
    return ""


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
