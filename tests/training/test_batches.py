import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.training.batches import Batches, SeededBatches


def _batches(seed=3):
    return SeededBatches(lambda rng: rng.integers(0, 1000, 5), seed)


def test_position_decides_the_batch():
    batches = _batches()
    assert isinstance(batches, Batches)
    first = [next(batches) for _ in range(4)]
    assert len({tuple(batch) for batch in first}) == 4
    again = _batches()
    again.set_state({"seed": 3, "position": 2})
    np.testing.assert_array_equal(next(again), first[2])
    assert again.get_state() == {"seed": 3, "position": 3}


def test_seeds_differ_and_do_not_mix():
    assert not np.array_equal(next(_batches(3)), next(_batches(4)))
    with pytest.raises(InputError, match="seed"):
        _batches(4).set_state({"seed": 3, "position": 0})
