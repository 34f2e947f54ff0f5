"""Whether the devices have room for a model, before its weights are read."""

import typing
from collections.abc import Mapping

from worldstereo_jax.errors import InputError

SMALLER = "--devices, --weights int8 and --vae-tile make it smaller"
"""What takes less of a device, as the end of a sentence."""


def memory_limit(device: typing.Any) -> int | None:
    """Bytes that may be allocated on a jax device; None where its backend does not tell."""
    stats = device.memory_stats()
    return None if not stats else stats.get("bytes_limit")


def check_room(wanted: Mapping[str, int], limit: int, device: object) -> None:
    """Refuse what cannot lie on a device together.

    Args:
        wanted: bytes of each thing by its name.
        limit: of the device, bytes.
        device: the one with the least room.

    Raises:
        InputError: naming every thing and its size, and what can be done.
    """
    total = sum(wanted.values())
    if total > limit:
        parts = ", ".join(f"{name.replace('_', ' ')} {_gb(size)}" for name, size in wanted.items())
        raise InputError(
            f"each device must hold {_gb(total)} GB before the first step ({parts}), but {device} "
            f"has {_gb(limit)} GB; {SMALLER}"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g}"
