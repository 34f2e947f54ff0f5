import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_codec import bytes_per_entry, quantise_entries, restore_entries


@pytest.fixture(scope="module")
def bank(room):
    w2c = es.cameras(room, 2)
    images, depth = es.photographs(room, w2c)
    return es.build(es.frames(images, depth, w2c))


def _psnr(bank, other, level):
    held = np.asarray(bank.valid)
    error = np.asarray(bank.features[level] - other.features[level])[held]
    return 10 * np.log10(4.0 / np.mean(np.square(error)))


@pytest.mark.row("S31")
def test_eight_bits_lose_nothing_that_shows_and_take_a_quarter(bank):
    coded = quantise_entries(bank)
    back = restore_entries(coded)
    for level in range(3):
        assert _psnr(bank, back, level) > 52.0
        step = np.asarray(coded.scales[level])[None]
        away = np.abs(np.asarray(bank.features[level] - back.features[level]))
        assert (away <= 0.501 * step)[np.asarray(bank.valid)].all()
    rest = [x.replace(features=(), appearance=jnp.zeros((0, 18))) for x in (bank, back)]
    es.assert_equal_banks(*rest)
    # Directions, and moments by their roots, each to half a step.
    held = np.asarray(bank.valid)
    one, other = (np.asarray(x.appearance)[held] for x in (bank, back))
    one, other = (np.append(x[:, :3], np.sign(x) * np.sqrt(np.abs(x)), 1) for x in (one, other))
    step = np.append(coded.appearance_scale[:3], coded.appearance_scale)
    assert (np.abs(one - other)[:, 6:] <= 0.501 * step[6:]).all()
    plain, small = bytes_per_entry(bank), bytes_per_entry(coded)
    assert small["features"] == plain["features"] / 4 == 81 + 18
    assert small["total"] == small["features"] + small["geometry"]
    assert small["geometry"] == plain["geometry"]
    assert small["total"] < 0.5 * plain["total"]


@pytest.mark.row("S31")
def test_four_bits_pack_two_channels_into_a_byte(bank):
    coded = quantise_entries(bank, bits=(8, 4, 4))
    assert [codes.shape[1] for codes in coded.codes] == [27, 14, 14]
    back = restore_entries(coded)
    for level in (1, 2):
        assert _psnr(bank, back, level) > 25.0
        step = np.asarray(coded.scales[level])[None]
        away = np.abs(np.asarray(bank.features[level] - back.features[level]))
        assert (away <= 0.501 * step)[np.asarray(bank.valid)].all()
    assert bytes_per_entry(coded)["features"] == 27 + 14 + 14 + 18


@pytest.mark.row("S31")
def test_what_is_decoded_is_coded_the_same_and_an_empty_bank_is_no_trouble(bank):
    once = quantise_entries(bank)
    again = quantise_entries(restore_entries(once))
    es.assert_equal_banks((once.codes, once.appearance), (again.codes, again.appearance))
    empty = init_entries(EntryConfig(5, (3, 2)))
    es.assert_equal_banks(restore_entries(quantise_entries(empty, bits=(4, 8))), empty)
    junk = empty.replace(features=(jnp.full((5, 3), 1e9), jnp.zeros((5, 2))))
    assert float(quantise_entries(junk).scales[0].max()) == 1.0  # empty slots set no scale


def test_other_numbers_of_bits_are_refused(bank):
    for bits in ((8, 8), (8, 8, 5)):
        with pytest.raises(InputError, match="8 or 4"):
            quantise_entries(bank, bits=bits)
