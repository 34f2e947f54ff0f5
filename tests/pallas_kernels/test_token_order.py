"""The curves are what they claim, orders undo themselves, and they make masks sparse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.token_order import CURVES, hilbert_code, morton_code

CODES = {"hilbert": hilbert_code, "morton": morton_code}


def _cube(corner, side):
    cells = np.stack(np.meshgrid(*(np.arange(side),) * 3, indexing="ij"), axis=-1)
    return (cells.reshape(-1, 3) + np.asarray(corner)).astype(np.uint32)


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("corner", [(0, 0, 0), (1016, 512, 248)])
def test_an_aligned_cube_is_one_stretch_of_the_curve(curve, corner):
    codes = np.asarray(CODES[curve](jnp.asarray(_cube(corner, 8)))).astype(np.int64)
    np.testing.assert_array_equal(np.sort(codes), np.arange(512) + codes.min())
    assert codes.min() % 512 == 0


def test_hilbert_neighbours_share_a_face():
    for corner in ((0, 0, 0), (512, 0, 1008)):
        cells = _cube(corner, 16)
        along = cells[np.argsort(hilbert_code(jnp.asarray(cells)))].astype(int)
        np.testing.assert_array_equal(np.abs(np.diff(along, axis=0)).sum(axis=1), 1)


def test_morton_interleaves_the_bits():
    cell = np.array([0b1000000001, 0b0100000011, 0b0010000111], np.uint32)
    bits = "".join(
        f"{x:010b}{y:010b}{z:010b}"[i]
        for x, y, z in [cell]
        for b in range(10)
        for i in (b, 10 + b, 20 + b)
    )
    assert int(morton_code(jnp.asarray(cell))) == int(bits, 2)


def _cloud(seed, tokens, batch=2):
    rng = np.random.default_rng(seed)
    return pk.make_token_geometry(
        jnp.asarray(rng.random((batch, tokens, 3)), jnp.float32),
        radius=0.05,
        frame=jnp.asarray(rng.integers(0, 3, (batch, tokens)), jnp.int32),
        valid=jnp.asarray(rng.random((batch, tokens)) < 0.9),
    )


@pytest.mark.parametrize("curve", CURVES)
def test_order_undoes_itself_and_puts_unknown_tokens_last(curve):
    cloud = _cloud(0, 200)
    order = jax.jit(pk.order_tokens, static_argnames="curve")(cloud, curve=curve)
    x = jnp.arange(2 * 200 * 3.0).reshape(2, 200, 3)
    np.testing.assert_array_equal(order.undo(order.apply(x)), x)
    np.testing.assert_array_equal(order.apply(order.undo(x)), x)
    assert not np.array_equal(order.apply(x), x)
    valid = np.asarray(pk.order_geometry(cloud, order).valid)
    assert (np.diff(valid.astype(int), axis=1) <= 0).all()
    # Unknown tokens keep their order among themselves.
    tail = [np.asarray(order.forward)[b][~valid[b]] for b in range(2)]
    assert all((np.diff(t) > 0).all() for t in tail)


def test_frames_can_stay_together():
    cloud = _cloud(1, 200)
    order = pk.order_tokens(cloud, major=cloud.frame)
    frames = np.asarray(order.apply(cloud.frame))
    assert (np.diff(frames, axis=1) >= 0).all()


def test_one_box_holds_several_clouds():
    first, second = _cloud(2, 50), _cloud(3, 30)
    box = pk.bounding_box(first, second)
    valid = np.concatenate([x.position[x.valid] for x in (first, second)])
    assert np.asarray(box)[:, 0].min() == valid.min()


def test_order_makes_tiles_sparse():
    first, second = _cloud(4, 1024, 1), _cloud(5, 1024, 1)

    @jax.jit
    def densities(first, second):
        def density(a, b):
            return pk.tile_density(pk.from_geometry(a, b, tile_q=32, tile_k=32)).active

        found = [density(first, second)]
        for curve in CURVES:
            orders = (pk.order_tokens(x, curve=curve) for x in (first, second))
            found.append(
                density(
                    *(pk.order_geometry(x, o) for x, o in zip((first, second), orders, strict=True))
                )
            )
        return found

    given, *curves = (float(x) for x in densities(first, second))
    assert max(curves) < given / 3


def test_nothing_known_is_no_error():
    cloud = _cloud(6, 16).replace(valid=jnp.zeros((2, 16), bool))
    np.testing.assert_array_equal(pk.order_tokens(cloud).forward, np.arange(16)[None].repeat(2, 0))
    with pytest.raises(ValueError, match="curve"):
        pk.order_tokens(cloud, curve="peano")
