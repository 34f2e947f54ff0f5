import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_codec import quantise_entries, restore_entries
from worldstereo_jax.memory.entry_edit import select_box
from worldstereo_jax.memory.entry_folder import entries_from_fields, entry_fields
from worldstereo_jax.memory.entry_prune import protect_entries
from worldstereo_jax.memory.folder import load_memory, load_optional_fields, save_memory
from worldstereo_jax.memory.global_geometric import init_global_memory
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory


@pytest.fixture(scope="module")
def bank(room):
    w2c = es.cameras(room, 3)
    images, depth = es.photographs(room, w2c)
    found = es.build(es.frames(images, es.noisy(depth), w2c, source=-3))
    box = select_box(found, jnp.array([-1.0, -1.0, 3.0]), jnp.array([1.0, 1.0, 7.0]))
    return protect_entries(found, box).replace(overflow=jnp.asarray(17, jnp.int32))


def _through_a_folder(fields, tmp_path):
    banks = init_global_memory(5), init_spatial_memory(2, 16, 32)
    save_memory(tmp_path / "memory", *banks, model="tiny-1", optional=fields)
    load_memory(tmp_path / "memory", model="tiny-1")
    return load_optional_fields(tmp_path / "memory")


@pytest.mark.row("S33")
@pytest.mark.parametrize("bits", [None, (8, 4, 8)], ids=["float32", "quantised"])
def test_saved_and_loaded_is_the_same_bit_by_bit(bank, bits, tmp_path):
    stored = bank if bits is None else quantise_entries(bank, bits=bits)
    fields = _through_a_folder(entry_fields(stored), tmp_path)
    loaded = entries_from_fields(fields, capacity=bank.capacity)
    assert jax.tree.structure(loaded) == jax.tree.structure(stored)
    for a, b in zip(jax.tree.leaves(stored), jax.tree.leaves(loaded), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.row("S33")
def test_an_empty_bank_comes_back_and_room_can_be_added(bank, tmp_path):
    empty = init_entries(EntryConfig(4, (3, 2), views=70)).replace(overflow=jnp.asarray(2))
    fields = _through_a_folder(entry_fields(empty), tmp_path)
    es.assert_equal_banks(entries_from_fields(fields, capacity=4), empty)
    larger = entries_from_fields(entry_fields(bank), capacity=bank.capacity + 100)
    assert larger.capacity == bank.capacity + 100
    assert int(larger.count) == int(bank.count)
    np.testing.assert_array_equal(larger.position[: bank.capacity], bank.position)
    assert not larger.valid[bank.capacity :].any()


@pytest.mark.row("S33")
@pytest.mark.parametrize("bits", [None, (8, 8, 8)], ids=["float32", "quantised"])
def test_folders_from_before_edges_and_change_by_view_load(bank, bits):
    fields = entry_fields(bank if bits is None else quantise_entries(bank, bits=bits))
    later = ("descriptor.extent", "descriptor.beyond", "descriptor.appearance")
    later += ("descriptor.inherited", "pyramid_scale.appearance")
    old = {name: value for name, value in fields.items() if name not in later}
    found = entries_from_fields(old, capacity=bank.capacity)
    found = found if bits is None else restore_entries(found)
    held = np.asarray(bank.valid)
    np.testing.assert_array_equal(found.position, bank.position)
    np.testing.assert_array_equal(np.asarray(found.spacing)[held], 1.0)
    assert not np.asarray(found.edge).any()
    assert not np.asarray(found.inherited).any()
    assert not np.asarray(found.appearance)[:, 3:].any()
    np.testing.assert_allclose(found.appearance[:, :3], bank.direction, atol=0.01)


@pytest.mark.row("S33")
def test_fields_that_are_no_entries_are_refused_in_one_sentence(bank):
    fields = entry_fields(bank)
    missing = {name: value for name, value in fields.items() if name != "normal"}
    short = fields | {"descriptor.state": fields["descriptor.state"][:, :-1]}
    half = fields | {"pyramid_scale.1": np.ones(27, np.float32)}
    for wrong, words in ((missing, "'normal'"), (short, "columns"), (half, "pyramid_scale")):
        with pytest.raises(InputError, match=words) as caught:
            entries_from_fields(wrong, capacity=bank.capacity)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="capacity"):
        entries_from_fields(fields, capacity=10)
