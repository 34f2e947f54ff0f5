"""The Hopper kernels: in the GPU interpreter against the reference, and when they can run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels import api
from pallas_kernels.fills import BitFill
from pallas_kernels.mosaic_tables import lane_words, mosaic_tables
from pallas_kernels.pallas_mosaic_gpu import cannot_take_mosaic_gpu, interpreted_attention
from pallas_kernels.selftest_cases import QUICK, make_problem
from tests.pallas_kernels.attention_suite import AttentionSuite
from tests.pallas_kernels.devices import AMPERE, HOPPER, tokens_on

needs_interpreter = pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="the GPU interpreter needs jax 0.12 (Python 3.12)"
)


@pytest.fixture(scope="class")
def interpreted():
    """The Hopper implementation, registered so that it runs here, in the GPU interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        entry = api.Implementation(interpreted_attention)
        patch.setitem(api.IMPLEMENTATIONS, "pallas_mosaic_gpu", entry)
        yield


@needs_interpreter
@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
class TestPallasMosaicGpu(AttentionSuite):
    implementation = "pallas_mosaic_gpu"
    kinds = (*QUICK, "joint_soft")  # all others are packed into bits like "joint"
    soft_tolerance = 1e-3  # attraction and penalty are rounded to 16 bits

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_rows_of_several_tiles(self, dtype):
        """Rows of uneven length with full, partial and ragged tiles, one of them empty."""
        problem = make_problem("random", batch=1, heads=1, q_len=330, k_len=290, dtype=dtype)
        rng = np.random.default_rng(1)
        dense = rng.random((1, 330, 290)) < 0.4
        dense[:, :128] = False
        dense[:, 128:256] = True
        dense[:, 256:, 128:256] = False
        mask = pk.from_dense(jnp.asarray(dense), 128, 128)
        assert np.asarray(mask.keys.count).ravel().tolist() == [0, 3, 2]
        self.check(problem._replace(mask=mask), 2e-5 if dtype == "float32" else 3e-2)

    def test_without_partial_tiles(self):
        problem = make_problem("random", batch=1, heads=1, q_len=256, k_len=256)
        mask = pk.dense_pattern(256, 256)
        assert mosaic_tables(mask)[0].words is None
        self.check(problem._replace(mask=mask))

    def test_shard_map_and_scan(self):
        pytest.skip("the GPU interpreter's ordered callbacks run on one device only")


def test_words_stand_as_the_threads_read_them():
    allowed = np.random.default_rng(0).random((3, 128, 128)) < 0.5
    mask = pk.from_dense(jnp.asarray(allowed), 128, 128)
    assert isinstance(mask.fill, BitFill)
    words = np.asarray(lane_words(mask.fill.words[:, 0, 0]))
    assert words.shape == (3, 64, 8)
    bit = np.arange(32)
    found = (words[..., None] >> bit) & 1
    half, group = bit // 16, bit % 16
    for row, column in ((0, 0), (63, 7), (17, 3)):
        want = allowed[:, 64 * half + row, 8 * group + column]
        np.testing.assert_array_equal(found[:, row, column], want)


def test_a_ragged_last_tile_is_masked_for_queries_only():
    rows, columns = mosaic_tables(pk.dense_pattern(200, 150))
    assert np.asarray(rows.rows.partial).ravel().tolist() == [1, 1]
    assert np.asarray(rows.rows.index)[0, 0, 0].tolist() == [1, 0]
    # Columns 0 to 21 of the last tile: two whole groups of eight, and six of the third.
    words = np.asarray(rows.words)[0, 0, 0, 0]
    low = [0b111] * 6 + [0b11] * 2
    assert [int(word) & 0xFFFF for word in words] == low
    assert columns.words is None
    assert np.asarray(columns.rows.partial).ravel().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("device", "version", "reason"),
    [
        (("cpu", "cpu"), (0, 12, 0), "an NVIDIA GPU, and this is for cpu"),
        (("gpu", "Radeon"), (0, 12, 0), "known compute capability, and this is for Radeon"),
        (AMPERE, (0, 12, 0), "9.x (Hopper), and this is 8.0"),
        (("gpu", "NVIDIA B200"), (0, 12, 0), "9.x (Hopper), and this is 10.0"),
        (HOPPER, (0, 10, 2), "jax 0.11 or later"),
        (HOPPER, (0, 11, 2), ""),
    ],
)
def test_which_devices_can_run(monkeypatch, device, version, reason):
    monkeypatch.setattr(jax, "__version_info__", version)
    q = tokens_on(device, 40)
    found = api.obstacle("pallas_mosaic_gpu", q, q, pk.dense_pattern(40, 40))
    assert reason in found if reason else found == ""


def test_which_operands_it_can_take():
    def reason(head_dim=64, dtype=jnp.bfloat16, **tiles):
        q = jax.ShapeDtypeStruct((1, 256, 1, head_dim), dtype)
        return cannot_take_mosaic_gpu(q, q, pk.dense_pattern(256, 256, **tiles))

    assert not reason()
    assert not reason(tile_q=64, tile_k=32)
    assert "head size" in reason(head_dim=96)
    assert "float32" in reason(dtype=jnp.float32)
    assert "divide 128" in reason(tile_q=256)


def test_hopper_is_preferred_to_triton(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))

    def choice(dtype):
        shape = tokens_on(HOPPER, 4096, dtype)
        return pk.explain_choice(shape, shape, pk.dense_pattern(4096, 4096)).implementation

    assert choice(jnp.bfloat16) == "pallas_mosaic_gpu"
    assert choice(jnp.float32) == "pallas_triton"
