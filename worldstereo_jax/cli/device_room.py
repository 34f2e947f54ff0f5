"""The devices that a model is split over, and whether they have room for it."""

import typing
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.official_pipeline import (
    ModelFiles,
    PathOrId,
    device_bytes,
    needs_text_encoder,
)
from worldstereo_jax.sampling.official_world import MODEL_AXIS

SMALLER = "--devices, --weights int8 and --vae-tile make it smaller"
"""What takes less of a device, as the end of a sentence."""


def model_mesh(devices: int | None) -> Mesh | None:
    """The devices that --devices asks for; None for one.

    Raises:
        InputError: when there are fewer.
    """
    if devices is None or devices == 1:
        return None
    found = jax.devices()
    if devices > len(found):
        raise InputError(f"--devices is {devices}, but this machine has {len(found)}")
    return Mesh(np.array(found[:devices]), (MODEL_AXIS,))


def check_model_room(
    files: ModelFiles,
    texts: Sequence[str],
    *,
    dtype: str,
    weights: str | None,
    mesh: Mesh | None,
    text_cache: PathOrId | None,
    beside: Mapping[str, int],
) -> None:
    """Refuse a model that does not fit the devices, as far as these tell how much they hold.

    Args:
        files: of the model.
        texts: prompts; those of the cache need no encoder.
        dtype, weights, mesh: as in `load_official`.
        text_cache: folder of text states, None for none.
        beside: bytes of what lies on each device beside the model, by its name.

    Raises:
        InputError: see `check_room`.
    """
    devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)
    limits = [(limit, device) for device in devices if (limit := memory_limit(device)) is not None]
    if not limits:
        return
    limit, device = min(limits, key=lambda found: found[0])
    wanted = device_bytes(files, dtype=dtype, weights=weights, mesh=mesh)
    text_encoder = {name: wanted.pop(name) for name in ("text_encoder",) if name in wanted}
    if needs_text_encoder(files, texts, dtype=dtype, cache=text_cache):
        # It is let go before the others come.
        check_room(text_encoder, limit, device)
    check_room({**wanted, **beside}, limit, device)


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
