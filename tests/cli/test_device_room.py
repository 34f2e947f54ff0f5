import jax
import pytest

from worldstereo_jax.cli.device_room import check_room, memory_limit
from worldstereo_jax.errors import InputError


class _Device:
    def __init__(self, stats):
        self._stats = stats

    def memory_stats(self):
        return self._stats


def test_a_limit_is_known_where_the_backend_tells():
    for stats, limit in (({"bytes_limit": 9, "num_allocs": 1}, 9), ({}, None), (None, None)):
        assert memory_limit(_Device(stats)) == limit


def test_what_does_not_fit_is_refused_with_every_size():
    device = jax.devices()[0]
    check_room({"transformer": 6, "vae": 4}, 10, device)
    wanted = {"transformer": 34_860_000_000, "image_encoder": 2_520_000_000}
    with pytest.raises(InputError) as refusal:
        check_room(wanted, 16_000_000_000, device)
    assert str(refusal.value) == (
        "each device must hold 37.4 GB before the first step (transformer 34.9, image encoder "
        f"2.52), but {device} has 16 GB; --devices, --weights int8 and --vae-tile make it smaller"
    )
