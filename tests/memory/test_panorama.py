"""The panorama bank: 27 views that share one centre, so that cameras alone say what meets what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.data.scene_folders import read_scene
from worldstereo_jax.memory.coverage import retrieve_by_coverage
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_features import Level, pyramid_widths
from worldstereo_jax.memory.entry_frame import make_entry_frame
from worldstereo_jax.memory.entry_update import EntryRule, build_entries
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory, insert_keyframes
from worldstereo_jax.memory.warping import warp_views

HEIGHT, WIDTH, RADIUS = 30, 52, 10.0


@pytest.fixture(scope="module")
def bank(shared_dir):
    return read_scene(shared_dir / "data/panorama/scene0", (HEIGHT, WIDTH)).bank


@pytest.fixture(scope="module")
def rays(bank):
    """World directions [v, h, w, 3] of every pixel, camera z of one."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    pixels = np.stack([x, y, np.ones_like(x)], -1)
    local = np.einsum("vij,hwj->vhwi", np.linalg.inv(bank.intrinsics.astype(float)), pixels)
    return np.einsum("vji,vhwj->vhwi", bank.w2c[:, :3, :3].astype(float), local)


@pytest.fixture(scope="module")
def depth(rays):
    """Camera z of a sphere around the centre: any would do, since nothing has parallax."""
    return (RADIUS / np.linalg.norm(rays, axis=-1)).astype(np.float32)


@pytest.fixture(scope="module")
def shared(bank, rays):
    """Which pixels of each view another's picture holds as well: [target, source, h, w]."""
    matrix = bank.intrinsics.astype(float) @ bank.w2c[:, :3, :3]
    q = np.einsum("sij,thwj->tshwi", matrix, rays)
    x, y = (q[..., i] / np.where(q[..., 2] > 0, q[..., 2], np.nan) for i in (0, 1))
    return (x >= 0) & (y >= 0) & (x < WIDTH) & (y < HEIGHT)


@pytest.mark.row("S8")
@pytest.mark.row("S18")
def test_every_view_is_found_in_every_other_by_the_cameras_alone(bank, depth, shared):
    images, depths = jnp.asarray(bank.images), jnp.asarray(depth)
    w2c, intrinsics = jnp.asarray(bank.w2c), jnp.asarray(bank.intrinsics)

    @jax.jit
    def into(target):
        def one(source):
            found = warp_views(
                images[source][None],
                depths[source][None],
                jnp.ones((1, HEIGHT, WIDTH)),
                w2c[source][None],
                intrinsics[source][None],
                jnp.ones((1,), bool),
                w2c[target],
                intrinsics[target],
                k=1,
            )
            held = 1.0 - found.mask
            error = jnp.square(found.features - images[target]).mean(-1)
            return held.mean(), (held * error).sum()

        return jax.lax.map(one, jnp.arange(27))

    covered, error = (np.stack(x) for x in zip(*map(into, range(27)), strict=True))
    np.testing.assert_allclose(np.diag(covered), 1.0)
    # What the cameras say is shared is covered, but for the borders of the views.
    assert np.abs(covered - shared.mean((2, 3))).max() < 0.05
    pairs = (covered > 0.02) & ~np.eye(27, dtype=bool)
    assert pairs.sum() > 100
    psnr = 10 * np.log10(4 * (covered * HEIGHT * WIDTH)[pairs] / error[pairs])
    print(f"{pairs.sum()} pairs, median {np.median(psnr):.1f} dB, least {psnr.min():.1f} dB")
    assert np.median(psnr) > 25
    # One pixel askew costs several decibels.
    assert psnr.min() > 15


@pytest.mark.row("S7")
@pytest.mark.row("S26")
def test_retrieval_takes_views_that_overlap(bank, depth, shared):
    memory = insert_keyframes(
        init_spatial_memory(27, HEIGHT, WIDTH),
        *(jnp.asarray(x) for x in (bank.images, depth, bank.w2c, bank.intrinsics)),
    )
    assert int(memory.count) == 27
    again = insert_keyframes(
        memory, *(jnp.asarray(x) for x in (bank.images, depth, bank.w2c, bank.intrinsics))
    )
    assert (int(again.count), int(again.overflow)) == (27, 0)
    retrieve = jax.jit(retrieve_by_coverage, static_argnames="count")
    for target in (0, 9, 20):
        others = memory.replace(valid=memory.valid.at[target].set(False))
        here = jnp.asarray(bank.w2c[[target]]), jnp.asarray(bank.intrinsics[[target]])
        found = retrieve(others, *here, count=4)
        chosen = np.asarray(found.index)[np.asarray(found.valid)]
        assert len(chosen) >= 2
        assert target not in chosen
        shares = shared[target, chosen].mean((1, 2))
        assert (shares > 0).all()
        # The first is nearly the best there is; together they show nearly all.
        assert shares[0] > 0.9 * np.delete(shared[target].mean((1, 2)), target).max()
        assert shared[target, chosen].any(0).mean() > 0.9


@pytest.mark.row("S12")
@pytest.mark.row("S28")
def test_all_views_twice_add_nothing_the_second_time(bank, depth):
    levels = (Level("texture", cell=1, grid=1),)
    rule = EntryRule(stride=2)

    @jax.jit
    def insert(entries, first_view):
        def frame(image, depth, w2c, intrinsics, view):
            return make_entry_frame(image, depth, w2c, intrinsics, view=view, levels=levels)

        given = (jnp.asarray(x) for x in (bank.images, depth, bank.w2c, bank.intrinsics))
        frames = jax.vmap(frame)(*given, first_view + jnp.arange(27))
        return build_entries(entries, frames, rule=rule)

    once = insert(init_entries(EntryConfig(9_000, pyramid_widths(levels))), 0)
    sites = 27 * (HEIGHT // 2) * (WIDTH // 2)
    # The views overlap: far fewer entries than there are sites.
    assert 1500 < int(once.count) < 0.6 * sites
    same = insert(once, 0)
    assert int(same.count) == int(once.count)
    # Early frames have something to say of what later ones added, but only once.
    es.assert_equal_banks(same, insert(same, 0))
    # As if they were new views: seen again, and still nothing is added.
    others = insert(once, 32)
    assert int(others.count) == int(once.count)
    assert int(others.observations.sum()) > 1.9 * int(once.observations.sum())
