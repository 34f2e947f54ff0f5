"""The assembled model's invariants: memories can be absent, holes are silent, order is free."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from pallas_kernels import (
    AttentionSharding,
    TokenOrder,
    dense_pattern,
    frame_pair,
    from_dense,
    pack_partial_tiles,
)
from tests.models.small_model import (
    BATCH,
    ENTRIES,
    REFERENCE,
    SMALL,
    TARGET,
    TOKENS_PER_FRAME,
    VIEWS,
    inputs,
    memory_entries,
    normal,
    random_params,
    run,
    run_alike,
    warped_memory,
)
from worldstereo_jax.config import get_preset
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.layer_stacks import unstack
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.models.worldstereo import (
    StreamOrder,
    WarpedMemory,
    WorldStereo,
    init_params,
    smallest_inputs,
)

params = functools.cache(random_params)
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def differs(a, b):
    return float(jnp.abs(a - b).max()) > 1e-3


def without(name):
    return {key: value for key, value in inputs().items() if key != name}


def with_valid(valid):
    kwargs = inputs()
    kwargs["references"] = kwargs["references"].replace(valid=jnp.asarray(valid))
    return kwargs


@functools.cache
def full_output():
    return run_alike(params(), **inputs())


def permutation(seed, count):
    generator = np.random.default_rng(seed)
    forward = jnp.asarray(np.stack([generator.permutation(count) for _ in range(BATCH)]), jnp.int32)
    return TokenOrder(forward, jnp.argsort(forward, axis=1).astype(jnp.int32))


@pytest.mark.row("S18")
@pytest.mark.row("S28")
def test_untrained_memory_slots_change_nothing():
    plain = SMALL.replace(warped_width=0, entry_width=0)
    old = random_params(plain)
    fresh = init_params(SMALL, jax.random.key(3))
    grown = dict(fresh)
    for name in old:
        grown[name] = old[name]
    for run_name in ("controlled", "blocks"):
        layers = dict(old[run_name]["layers"])
        slots = fresh[run_name]["layers"]["backbone"]
        slots = {name: slots[name] for name in ("warped_attention", "entry_attention")}
        layers["backbone"] = {**layers["backbone"], **slots}
        grown[run_name] = {"layers": layers}
    before = run_alike(old, plain, **inputs())
    memory = {"warped": warped_memory(), "entries": memory_entries()}
    np.testing.assert_array_equal(before, run_alike(grown, **inputs(), **memory))
    assert differs(run_alike(params(), **inputs(), warped=warped_memory()), full_output())
    assert differs(run_alike(params(), **inputs(), **memory), full_output())


@pytest.mark.row("S28")
@pytest.mark.row("S17")
def test_entries_that_are_not_there_contribute_exactly_nothing():
    valid = np.random.default_rng(5).random((BATCH, ENTRIES)) < 0.5
    mask = dense_pattern(TARGET, ENTRIES, tile_q=32, tile_k=32)
    entries = memory_entries(valid)
    poisoned = entries.replace(
        **{
            name: jnp.where(entries.valid[..., None], getattr(entries, name), jnp.nan)
            for name in ("features", "place")
        }
    )
    some = run_alike(params(), **inputs(), entries=entries, entry_mask=mask)
    np.testing.assert_array_equal(
        some, run_alike(params(), **inputs(), entries=poisoned, entry_mask=mask)
    )
    assert differs(some, full_output())
    assert differs(some, run_alike(params(), **inputs(), entries=memory_entries(), entry_mask=mask))
    none = run_alike(params(), **inputs(), entries=memory_entries(False), entry_mask=mask)
    np.testing.assert_array_equal(none, full_output())


@pytest.mark.row("S28")
def test_the_order_of_entries_changes_nothing():
    order = permutation(3, ENTRIES)
    target = permutation(0, TARGET)
    allowed = np.random.default_rng(4).random((BATCH, TARGET, ENTRIES)) < 0.4
    ordered = np.stack([allowed[b][target.forward[b]][:, order.forward[b]] for b in range(BATCH)])
    entries = memory_entries(np.arange(ENTRIES) != 4)
    moved = entries.replace(
        **{name: order.apply(getattr(entries, name)) for name in ("features", "place", "valid")}
    )
    close(
        run(
            params(),
            **inputs(),
            entries=entries,
            entry_mask=from_dense(jnp.asarray(allowed), 32, 32),
        ),
        run(
            params(),
            **inputs(),
            entries=moved,
            entry_mask=from_dense(jnp.asarray(ordered), 32, 32),
            token_order=StreamOrder(target, None),
        ),
    )


@pytest.mark.row("S18")
@pytest.mark.row("S17")
def test_holes_contribute_exactly_nothing():
    holes = warped_memory(holes=True)
    holes = holes.replace(features=jnp.full_like(holes.features, jnp.nan))
    np.testing.assert_array_equal(run_alike(params(), **inputs(), warped=holes), full_output())


@pytest.mark.row("S17")
def test_gradients_are_finite_with_and_without_holes():
    kwargs = with_valid([[False] * VIEWS, [True] * VIEWS])

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(params, features, log_weight):
        warped = WarpedMemory(features, log_weight)
        out = jnp.asarray(WorldStereo(SMALL).apply({"params": params}, **kwargs, warped=warped))
        return (out**2).mean()

    for holes in (True, False):
        memory = warped_memory(holes=holes)
        gradients = gradient(params(), memory.features, memory.log_weight)
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))
        assert bool((jnp.abs(gradients[1]).max() > 0) != holes)


@pytest.mark.row("S18")
def test_a_candidate_reaches_only_its_own_token_before_attention_mixes():
    memory = warped_memory()
    one = jnp.zeros(memory.log_weight.shape, bool).at[0, 0, 0, 0, 0].set(True)
    config = SMALL.replace(num_layers=1, control=None)
    kwargs = without("control")
    small = random_params(config)
    single = memory.replace(log_weight=jnp.where(one, memory.log_weight, -jnp.inf))
    # Entrance off, so that only the aligned keys and values of the one block are seen.
    small["warped_entry"] = jax.tree.map(jnp.zeros_like, small["warped_entry"])
    change = run(small, config, **kwargs, warped=single) - run(small, config, **kwargs)
    touched = np.asarray(jnp.abs(change).max(-1) > 1e-4)
    assert touched[0, 0, :2, :2].all()
    assert touched.sum() == 4


@pytest.mark.row("S7")
def test_invalid_references_equal_no_references():
    invalid = run(params(), **with_valid(np.zeros((BATCH, VIEWS), bool)))
    close(invalid, run(params(), **without("references")))
    assert differs(invalid, full_output())


@pytest.mark.row("S7")
def test_an_invalid_reference_influences_nothing():
    valid = np.array([[True, False, True], [False, True, True]])
    kwargs = with_valid(valid)
    poisoned = jnp.where(valid[:, :, None, None, None], kwargs["references"].latent, 1e3)
    other = {**kwargs, "references": kwargs["references"].replace(latent=poisoned)}
    close(run(params(), **kwargs), run(params(), **other))
    assert differs(run(params(), **kwargs), full_output())


@pytest.mark.row("S7")
@pytest.mark.row("S20")
def test_a_block_mask_respects_the_references_validity():
    valid = np.array([[True, False, True], [False, False, False]])
    kwargs = with_valid(valid)
    mask = dense_pattern(TARGET + REFERENCE, TARGET + REFERENCE, tile_q=32, tile_k=32)
    close(run(params(), **kwargs, block_mask=mask), run(params(), **kwargs))


@pytest.mark.row("S20")
def test_dense_block_mask_equals_the_official_dense_pattern():
    mask = dense_pattern(TARGET + REFERENCE, TARGET + REFERENCE, tile_q=32, tile_k=32)
    close(run(params(), **inputs(), block_mask=mask), full_output())


@pytest.mark.row("S20")
def test_patterns_are_chosen_per_layer():
    pairs = jnp.array([[0, 1], [2, -1]], jnp.int32)
    mask = frame_pair(
        pairs, references=VIEWS, tokens_per_frame=TOKENS_PER_FRAME, tile_q=32, tile_k=32
    )
    masks = {"frame_pair": mask, "correspondence": mask}

    def with_patterns(patterns, scan=True, masks=masks):
        config = SMALL.replace(attention_pattern=patterns, scan_layers=scan)
        values = params() if scan else unstack(params(), SMALL)
        return run(values, config, **inputs(), block_mask=masks)

    dense = with_patterns("dense")
    paired = with_patterns("frame_pair")
    mixed = with_patterns(("dense", "frame_pair", "correspondence"))
    close(dense, full_output())
    assert differs(paired, dense)
    assert differs(mixed, dense)
    assert differs(mixed, paired)
    close(mixed, with_patterns(("dense", "frame_pair", "correspondence"), scan=False))
    close(paired, with_patterns("correspondence", masks=mask))
    with pytest.raises(InputError, match="no pattern 'sliding'"):
        with_patterns("sliding")


@pytest.mark.slow
@pytest.mark.row("S20")
def test_attention_split_over_chips_changes_nothing():
    """Heads over one axis of the mesh, query tiles over the other, and XLA splits the rest."""
    pairs = jnp.array([[0, 1], [2, -1]], jnp.int32)
    tiles = {"tile_q": 16, "tile_k": 32}
    mask = frame_pair(pairs, references=VIEWS, tokens_per_frame=TOKENS_PER_FRAME, **tiles)
    mask = pack_partial_tiles(mask)
    mesh = Mesh(np.array(jax.devices("cpu")[:4]).reshape(2, 2), ("rows", "heads"))
    # One layer has every kind of attention, and splitting programs takes XLA long.
    config = SMALL.replace(num_layers=1, control=dataclasses.replace(SMALL.control, num_layers=1))
    values = random_params(config)
    model = WorldStereo(config, AttentionSharding(mesh, heads="heads", queries="rows"))
    apply = jax.jit(lambda values, given: model.apply({"params": values}, **given))
    given = with_valid(np.array([[True, False, True], [True, True, True]])) | {"block_mask": mask}
    close(apply(values, given), run(values, config, **given))


@pytest.mark.row("S20")
@pytest.mark.parametrize("update_ref", [True, False])
def test_token_order_changes_nothing(update_ref):
    config = SMALL.replace(update_ref=update_ref)
    target, references = permutation(0, TARGET), permutation(1, REFERENCE)
    allowed = np.random.default_rng(2).random((BATCH, REFERENCE + TARGET, REFERENCE + TARGET)) < 0.4
    joint = np.concatenate([references.forward, np.asarray(target.forward) + REFERENCE], axis=1)
    ordered = np.stack([allowed[b][joint[b]][:, joint[b]] for b in range(BATCH)])
    kwargs = {**with_valid([[True, False, True], [True] * 3]), "warped": warped_memory()}
    raster = run(params(), config, **kwargs, block_mask=from_dense(jnp.asarray(allowed), 32, 32))
    permuted = run(
        params(),
        config,
        **kwargs,
        block_mask=from_dense(jnp.asarray(ordered), 32, 32),
        token_order=StreamOrder(target, references),
    )
    close(raster, permuted)


ON_SURFACE = SMALL.replace(reference_positions="surface")


def with_places(shift=0.0):
    kwargs = inputs()
    kwargs["references"] = kwargs["references"].replace(
        place=3 * normal(13, BATCH, REFERENCE, 3) + shift,
        target_place=3 * normal(14, BATCH, TARGET, 3) + shift,
    )
    return kwargs


def test_of_places_on_the_surface_only_differences_count():
    """Neither the axes' origin, nor the order of tokens, nor the official index of a view."""
    near = run(params(), ON_SURFACE, **with_places())
    kwargs = with_places(shift=jnp.array([[[5.0, -2.0, 0.7]]]))
    kwargs["references"] = kwargs["references"].replace(
        index=jnp.zeros_like(kwargs["references"].index)
    )
    order = StreamOrder(permutation(0, TARGET), permutation(1, REFERENCE))
    close(near, run(params(), ON_SURFACE, **kwargs, token_order=order))
    assert differs(near, full_output())


def test_places_are_asked_for_by_name():
    for missing in ("place", "target_place"):
        kwargs = with_places()
        kwargs["references"] = kwargs["references"].replace(**{missing: None})
        with pytest.raises(InputError, match=rf"references\.{missing} is None, expected places"):
            run(params(), ON_SURFACE, **kwargs)


def test_reference_stream_is_reset_only_without_update_ref():
    assert differs(run(params(), SMALL.replace(update_ref=False), **inputs()), full_output())


@pytest.mark.row("S17")
def test_control_switched_off_per_sample_equals_no_control():
    kwargs = inputs()
    kwargs["control"] = kwargs["control"].replace(enabled=jnp.array([True, False]))
    mixed = run(params(), **kwargs)
    close(mixed[0], full_output()[0])
    close(mixed[1], run(params(), **without("control"))[1])
    assert differs(mixed[1], full_output()[1])


def gradient(params, config):
    def loss(params):
        out = jnp.asarray(WorldStereo(config).apply({"params": params}, **inputs()))
        return (out**2).mean()

    return jax.jit(jax.grad(loss))(params)


@functools.cache
def scanned_gradient():
    return unstack(gradient(params(), SMALL), SMALL)


@pytest.mark.parametrize(("remat", "scan"), [("full", False), ("dots", True)])
def test_remat_and_stacking_change_neither_output_nor_gradient(remat, scan):
    config = SMALL.replace(scan_layers=scan, remat=remat)
    if scan:
        found = unstack(gradient(params(), config), SMALL)
    else:
        found = gradient(unstack(params(), SMALL), config)
    compare = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(compare, scanned_gradient(), found)


def test_one_text_token_takes_the_short_way_to_the_same_result():
    kwargs = inputs()
    one = {**kwargs, "text": kwargs["text"][:, :1]}
    twice = {**kwargs, "text": jnp.repeat(kwargs["text"][:, :1], 2, axis=1)}
    close(run(params(), **one), run(params(), **twice))


def test_bfloat16_stays_near_float32():
    low = run(params(), SMALL.replace(dtype="bfloat16"), **inputs())
    assert low.dtype == jnp.float32
    error = jnp.abs(low - full_output()).max() / jnp.abs(full_output()).max()
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": jnp.zeros((BATCH, 2, 4, 8, 20))}, "latent has 20 channels, expected 36"),
        ({"latent": jnp.zeros((BATCH, 2, 5, 8, 36))}, "5 rows, expected a multiple of 2"),
        ({"image_tokens": jnp.zeros((BATCH, 1, 8))}, "config has no image_width"),
        ({"warped": warped_memory(width=4)}, "has 4 channels, expected"),
        (
            {"entries": memory_entries().replace(features=jnp.zeros((BATCH, ENTRIES, 3)))},
            "entries.features has 3 channels, expected config.entry_width = 7",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(
            lambda p: WorldStereo(SMALL).apply({"params": p}, **{**inputs(), **change}), params()
        )


def test_14b_memory_model_traces_at_its_working_size():
    config = get_preset("wan_14b_memory")
    shapes = parameter_shapes(config)
    counts = {"control": 0, "camera": 0, "blocks": 0}
    for path, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64))
        if path.startswith("control/") or "/control/" in path or "/residual/" in path:
            counts["control"] += size
        elif path.startswith("camera_embedding"):
            counts["camera"] += size
        elif "/backbone/" in path:
            counts["blocks"] += size
    # The published checkpoint: backbone 16.15 B, control 1.00 B, camera MLP 0.04 B.
    assert abs(counts["blocks"] / 1e9 - 16.15) < 0.01
    assert abs(counts["control"] / 1e9 - 1.00) < 0.01
    assert abs(counts["camera"] / 1e9 - 0.04) < 0.005

    def shaped(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    frames, views, rows, columns = 21, 8, 60, 104
    kwargs = jax.eval_shape(lambda: smallest_inputs(config))
    kwargs["control"] = kwargs["control"].replace(
        render_latent=shaped(1, frames, rows, columns, 16),
        render_mask=shaped(1, frames, 480, 832, 1),
        plucker=shaped(1, frames, 480, 832, 6),
    )
    kwargs |= {
        "latent": shaped(1, frames, rows, columns, 36),
        "text": shaped(1, 512, 4096),
        "image_tokens": shaped(1, 257, 1280),
        "camera": shaped(1, frames, 7),
        "references": inputs()["references"].replace(
            latent=shaped(1, views, rows, columns, 36),
            index=jax.ShapeDtypeStruct((1, views), jnp.int32),
            camera=shaped(1, views, 7),
        ),
    }
    tree = jax.eval_shape(
        lambda key: WorldStereo(config).init(key, **smallest_inputs(config)), jax.random.key(0)
    )
    out = jax.eval_shape(lambda p, kw: WorldStereo(config).apply(p, **kw), tree, kwargs)
    assert out.shape == (1, frames, rows, columns, 16)
