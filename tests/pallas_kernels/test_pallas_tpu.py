"""The TPU kernels in interpret mode, with race detection and NaN in all memory not written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import pallas_kernels as pk
from pallas_kernels import api, pallas_tpu_bits
from pallas_kernels.pallas_tpu import tpu_attention
from pallas_kernels.pallas_tpu_bits import BitLayout, bit_entries, bit_layout, row_bits, word_rows
from pallas_kernels.pallas_tpu_plan import (
    EMPTY_SLOT,
    FIRST_SLOT,
    FULL_SLOT,
    HEADER,
    RAGGED_SLOT,
    TpuConfig,
    choose_config,
    make_rows,
    slot_entries,
)
from pallas_kernels.selftest_cases import CASES, make_problem
from tests.pallas_kernels.attention_suite import AttentionSuite
from tests.pallas_kernels.devices import TPU, tokens_on

INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


def interpreted(q, k, v, mask, scale):
    """Two listed tiles to a step, so that rows take several; all heads that share a mask."""
    config = TpuConfig(q.shape[2] // mask.heads, 2, 2)
    return tpu_attention(q, k, v, mask, scale, config=config, interpret=INTERPRET)


def races_found() -> bool:
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    return bool(interpret_pallas_call.races.races_found)


class TestPallasTpu(AttentionSuite):
    implementation = "pallas_tpu"
    # "frames" are packed like "window"; "joint" is "geometry" both ways, as in "joint_soft".
    kinds = tuple(kind for kind in CASES if kind not in ("frames", "joint"))

    @pytest.mark.row("S15")
    @pytest.mark.parametrize("strength", [None, 0.0, jnp.inf])
    def test_soft_constraint_as_packed_numbers(self, strength):
        """Own tiles of both sides, ragged ones, full and empty ones within a step."""
        problem = make_problem("joint_soft", q_len=86)
        mask = pk.pack_soft_tiles(problem.mask, capacity=24)
        assert not np.asarray(mask.fill.overflow).any()
        if strength is not None:
            mask = mask.replace(strength=jnp.full_like(mask.strength, strength))
        self.check(problem._replace(mask=mask))

    def test_tall_tiles_in_parts(self):
        """Two tiles of two parts, of which some hold nothing; a full one, and a ragged one."""
        problem = make_problem("random", batch=1, q_len=400, k_len=120, head_dim=16)
        dense = np.array(np.random.default_rng(0).random((1, 2, 400, 120)) < 0.3)
        dense[:, :, :128, 32:64] = dense[:, 1, 128:256, :32] = dense[:, 0, 256:384, 64:] = False
        dense[:, :, :256, 64:] = True
        mask = pk.pack_partial_tiles(pk.from_dense(jnp.asarray(dense), 256, 32), capacity=14)
        assert mask.fill.words.shape[3] == 128
        assert not np.asarray(mask.fill.overflow).any()
        self.check(problem._replace(mask=mask))

    @pytest.fixture(autouse=True)
    def _interpret(self, monkeypatch):
        monkeypatch.setitem(api.IMPLEMENTATIONS, "pallas_tpu", api.Implementation(interpreted))
        yield
        assert not races_found()


@pytest.mark.row("S32")
def test_programs_and_steps_follow_the_active_tiles():
    """Grid programs and loop trips, counted by the interpreter itself."""
    programs = []

    def record(token, point, core):
        programs.append(tuple(int(x) for x in point))
        return token

    params = pltpu.InterpretParams(grid_point_recorder=record)
    tiles, config = 8, TpuConfig(1, 2, 2)
    q = jnp.ones((1, tiles * 16, 1, 8))
    k = jnp.ones((1, tiles * 32, 1, 8))

    @jax.jit
    def attend(mask):
        out, _ = tpu_attention(q, k, k, mask, 1.0, config=config, interpret=params)
        return out, make_rows(mask.keys, slot_entries(None), tiles=2, ragged=False)

    def run(count):
        index = np.broadcast_to(np.arange(tiles), (1, 1, tiles, tiles))
        mask = pk.from_tile_lists(
            jnp.asarray(index, jnp.int32),
            jnp.asarray(count, jnp.int32)[None, None],
            q_len=tiles * 16,
            k_len=tiles * 32,
            tile_q=16,
            tile_k=32,
        )
        programs.clear()
        _, rows = jax.block_until_ready(attend(mask))
        return len(programs), np.asarray(rows[0, 0, :, 0, :3])

    for count in (np.zeros(tiles, int), np.array([8, 0, 1, 2, 0, 3, 0, 0]), np.full(tiles, 8)):
        ran, header = run(count)
        # One program for each row, empty or not; one trip for each two tiles, rounded up.
        assert ran == tiles
        np.testing.assert_array_equal(header[:, 2], -(-count // 2))
        # Only a step that is not whole looks at the mask.
        np.testing.assert_array_equal(header[:, 0], 0)
        np.testing.assert_array_equal(header[:, 1], count // 2)


@functools.partial(jax.jit, static_argnames="ragged")
def _rows(lists, slot, *, ragged):
    """The rows of the first sample and head, two tiles to a step."""
    return make_rows(lists, slot_entries(slot), tiles=2, ragged=ragged)[0, 0, :, 0]


def test_rows_name_tiles_and_slots_and_which_steps_need_the_mask():
    state = np.array([[1, 2, 1, 2, 2], [0, 0, 0, 0, 0], [2, 2, 2, 2, 2], [0, 2, 0, 2, 0]])
    mask = pk.block_mask.build_mask(
        jnp.asarray(state, jnp.int8)[None, None], q_len=32, k_len=150, tile_q=8, tile_k=32
    )
    slot = np.where(state == 1, np.arange(5) + 10 * np.arange(4)[:, None], -1).astype(np.int32)
    rows = np.asarray(_rows(mask.keys, slot[None, None], ragged=True))
    assert rows.shape == (4, HEADER + 2 * 6)
    index, kind = rows[:, HEADER : HEADER + 6], rows[:, HEADER + 6 :]
    # Two partial tiles: one step; then two full ones; the last one ends the keys.
    assert rows[0, :3].tolist() == [1, 2, 3]
    assert index[0].tolist() == [0, 2, 1, 3, 4, 0]
    partial = [FIRST_SLOT, FIRST_SLOT + 2]
    assert kind[0].tolist() == [*partial, FULL_SLOT, FULL_SLOT, RAGGED_SLOT, EMPTY_SLOT]
    assert rows[1, :3].tolist() == [0, 0, 0]
    assert rows[2, :3].tolist() == [0, 2, 3]
    assert rows[3, :3].tolist() == [0, 1, 1]
    # A row whose partial tiles end within a step: that step needs the mask, the next does not.
    mixed = jnp.asarray([[1, 2, 2, 2]], jnp.int8)[None, None]
    mask = pk.block_mask.build_mask(mixed, q_len=8, k_len=128, tile_q=8, tile_k=32)
    rows = np.asarray(_rows(mask.keys, None, ragged=False))[0]
    assert rows[:3].tolist() == [1, 2, 2]


@pytest.mark.parametrize(("tile", "rows"), [(8, 8), (16, 8), (128, 8), (256, 8), (512, 16)])
def test_words_are_whole_registers(tile, rows):
    assert word_rows(tile) == rows
    assert word_rows(640) == 32


def _unpacked(words: np.ndarray, layout: BitLayout, entry: int) -> np.ndarray:
    """A tile's pairs as the kernel reads them: which parts there are, and where they are."""
    size = (1, layout.parts) if layout.inverse else (layout.parts, 1)
    tile = np.zeros((size[0] * layout.rows, size[1] * layout.columns), bool)
    at = entry >> layout.parts
    fetched = at // layout.shared
    for part in range(layout.parts):
        if not entry >> part & 1:
            continue
        register, lane = divmod(at, layout.shared)
        assert register - fetched < layout.fetched
        found = words[register] >> (lane * layout.bits)
        rows = np.concatenate([(found >> bit) & 1 for bit in range(layout.bits)])
        row, column = layout.place(0, part)
        tile[row : row + layout.rows, column : column + layout.columns] = rows
        at += 1
    return tile


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("tiles", "at_once"), [((48, 64), 2048), ((256, 32), 2048), ((256, 32), 9), ((48, 64), 1)]
)
def test_bits_stand_along_the_rows_in_shared_registers(monkeypatch, tiles, at_once, inverse):
    """Tiles of one part and of two parts of 128 rows, some of which hold nothing."""
    monkeypatch.setattr(pallas_tpu_bits, "_AT_ONCE", at_once)
    tile_q, tile_k = tiles
    tq, tk = 3 * tile_q - 20, 3 * tile_k - 24
    rng = np.random.default_rng(0)
    dense = rng.random((1, 2, tq, tk)) < 0.5
    dense[:, :, :128, tile_k:] &= tile_q < 128
    mask = pk.from_dense(jnp.asarray(dense), tile_q, tile_k)
    if tile_q > 128:
        mask = pk.pack_partial_tiles(mask, capacity=16)
        assert mask.fill.words.shape[2:4] == (16, 128)
        assert not np.asarray(mask.fill.overflow).any()
    layout = bit_layout(mask, inverse=inverse)
    assert layout.parts == (2 if tile_q > 128 else 1)
    # A function of this test's own: what is patched is read while it is traced.
    words, partial = jax.jit(lambda m: (row_bits(m, layout), bit_entries(m, layout).partial))(mask)
    words, entries = np.asarray(words).view(np.uint32), bit_entries(mask, layout)
    where = np.asarray(partial)
    dense = np.pad(dense, ((0, 0), (0, 0), (0, 20), (0, 24)))
    for head, q, k in np.ndindex(2, 3, 3):
        entry = where[0, head, k, q] if inverse else where[0, head, q, k]
        tile = _unpacked(words[0, head], layout, int(entry))
        rows, columns = (slice(i * n, i * n + n) for i, n in ((q, tile_q), (k, tile_k)))
        np.testing.assert_array_equal(tile.T if inverse else tile, dense[0, head, rows, columns])
    assert not _unpacked(words[0, 1], layout, entries.empty).any()
    assert _unpacked(words[0, 1], layout, entries.full).all()
    ragged = _unpacked(words[0, 1], layout, entries.ragged)
    ragged = ragged.T if inverse else ragged
    want = np.broadcast_to(np.arange(tile_k) < tile_k - 24, (tile_q, tile_k))
    np.testing.assert_array_equal(ragged, want)


def test_config_follows_the_mask():
    mask = pk.dense_pattern(4096, 4096, tile_q=512, tile_k=128)
    assert choose_config(mask, 40) == TpuConfig(heads=5, key_tiles=4, query_tiles=1)
    assert choose_config(mask, 16).heads == 4
    assert choose_config(mask, 40, token_bytes=512).heads == 2
    assert choose_config(mask, 3).heads == 3
    assert choose_config(mask, 7).heads == 1
    with pytest.raises(ValueError, match="groups of 4"):
        TpuConfig(4, 1, 1).check(mask, 6)
    with pytest.raises(ValueError, match="at least 1"):
        TpuConfig(0, 1, 1)


def test_says_why_it_cannot_run_and_what_it_cannot_take():
    q = jax.ShapeDtypeStruct((1, 512, 1, 8), jnp.float32)
    mask = pk.dense_pattern(512, 512)
    assert "needs a TPU" in api.obstacle("pallas_tpu", q, q, mask)
    take = api.IMPLEMENTATIONS["pallas_tpu"].cannot_take
    assert not take(q, q, mask)
    assert "float16" in take(jax.ShapeDtypeStruct(q.shape, jnp.float16), q, mask)
    assert "multiples of 128" in take(q, q, pk.dense_pattern(512, 512, tile_k=64))
    with pytest.raises(ValueError, match="multiples of 8"):
        interpreted(*make_problem("random")[:3], pk.dense_pattern(70, 101, tile_q=20), 1.0)
    token = pk.make_token_geometry(jnp.ones((1, 512, 3)), radius=1.0)
    soft = pk.from_geometry(token, token, strength=1.0, tile_q=128, tile_k=128)
    assert not take(q, q, soft)
    assert not take(q, q, soft & mask)


def test_is_the_choice_on_a_tpu_and_says_when_it_packs():
    q = tokens_on(TPU, 4096)
    choice = pk.explain_choice(q, q, pk.dense_pattern(4096, 4096))
    assert choice.implementation == "pallas_tpu"
    assert "packed" not in choice.reason
    window = pk.sliding_window(4096, 4096, before=100, after=100)
    assert "packed into bits" in pk.explain_choice(q, q, window).reason

    def masks():
        token = pk.make_token_geometry(jnp.zeros((1, 4096, 3)), radius=1.0)
        hard, soft = (
            pk.from_geometry(token, token, strength=strength, tile_q=512, tile_k=128)
            for strength in (None, 1.0)
        )
        return hard, soft, soft & pk.dense_pattern(4096, 4096, tile_q=512)

    hard, soft, both = jax.eval_shape(masks)
    assert "`pack_partial_tiles` makes once" in pk.explain_choice(q, q, hard).reason
    assert "`pack_soft_tiles` makes once" in pk.explain_choice(q, q, soft).reason
    assert "packed into numbers" in pk.explain_choice(q, q, both).reason


def _kernel_results(jaxpr, name: str) -> list[int]:
    """Of every kernel of that name in a program, how many arrays it gives."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call" and name in str(equation.params["name"]):
            found.append(len(equation.outvars))
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found += _kernel_results(inner, name)
    return found


@pytest.mark.row("S15")
def test_the_strength_has_a_gradient_only_where_it_is_asked_for():
    """It costs dq's kernel a third more."""
    problem = make_problem("soft", batch=1, q_len=32, k_len=64, head_dim=8)

    @jax.jit
    def total(q, strength):
        mask = problem.mask.replace(strength=strength)
        return jnp.sum(interpreted(q, problem.k, problem.v, mask, 0.3)[0])

    def results(which):
        program = jax.make_jaxpr(jax.grad(total, which))(problem.q, problem.mask.strength)
        return _kernel_results(program.jaxpr, "block_sparse_backward_queries")

    assert results(0) == [1]
    assert results((0, 1)) == results(1) == [2]


def test_negative_scale():
    problem = make_problem("random", batch=1, heads=1, q_len=32, k_len=64, head_dim=8)
    got = jax.jit(interpreted, static_argnums=4)(*problem[:4], -0.7)
    want = jax.jit(pk.reference.reference_attention, static_argnums=4)(*problem[:4], -0.7)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
