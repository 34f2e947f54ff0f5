import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.entries import (
    EntryConfig,
    append_entries,
    init_entries,
    put_entries,
    take_entries,
)


def _numbered(n):
    bank = init_entries(EntryConfig(n, (4, 2), views=40))
    number = jnp.arange(n, dtype=jnp.float32)
    return bank.replace(
        position=jnp.stack([number] * 3, -1), valid=jnp.ones((n,), bool), count=jnp.asarray(n)
    )


@pytest.mark.row("S1")
def test_an_empty_bank_has_the_shapes_asked_for_and_every_buffer_is_its_own():
    config = EntryConfig(7, (4, 2, 6), views=40)
    bank = init_entries(config)
    assert [level.shape for level in bank.features] == [(7, 4), (7, 2), (7, 6)]
    assert bank.views.shape == (7, 2)
    assert bank.config == EntryConfig(7, (4, 2, 6), views=64)
    assert int(bank.count) == int(bank.overflow) == 0
    kept = jax.jit(lambda bank: bank, donate_argnums=0)(bank)  # raises when buffers are shared
    es.assert_equal_banks(kept, init_entries(config))


def test_taking_and_putting_back_changes_nothing_and_empty_slots_are_empty():
    bank = _numbered(6)
    index = jnp.array([4, 1, 9, -1])
    part = jax.jit(take_entries)(bank, index)
    np.testing.assert_array_equal(part.position[:, 0], [4, 1, 0, 0])
    np.testing.assert_array_equal(part.valid, [True, True, False, False])
    put = jax.jit(put_entries)(bank, jnp.array([4, 1, 6, 6]), part)
    es.assert_equal_banks(put, bank)


@pytest.mark.row("S11")
def test_appending_keeps_order_and_counts_what_does_not_fit():
    bank = init_entries(EntryConfig(4, (4, 2), views=40))
    keep = jnp.array([True, False, True, True, False, True, True])
    append = jax.jit(append_entries)
    full = append(bank, _numbered(7), keep)
    np.testing.assert_array_equal(full.position[:, 0], [0, 2, 3, 5])
    assert (int(full.count), int(full.overflow)) == (4, 1)
    more = append(full, _numbered(7), keep)
    assert (int(more.count), int(more.overflow)) == (4, 6)
    np.testing.assert_array_equal(more.position, full.position)


@pytest.mark.parametrize(
    "wrong", [{"capacity": 0}, {"widths": ()}, {"views": 0}, {"widths": (3, 0)}]
)
def test_sizes_must_be_positive(wrong):
    with pytest.raises(InputError, match="at least 1"):
        EntryConfig(**({"capacity": 5} | wrong))
