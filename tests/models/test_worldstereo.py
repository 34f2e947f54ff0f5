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
from worldstereo_jax.interop.layer_stacks import from_flat, unstack
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.models.worldstereo import (
    StreamOrder,
    WorldStereo,
    smallest_inputs,
)

params = functools.cache(random_params)
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
JOINT = REFERENCE + TARGET


def differs(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max()) > 1e-3


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
    forward = np.stack([generator.permutation(count) for _ in range(BATCH)])
    return TokenOrder(*(jnp.asarray(x, jnp.int32) for x in (forward, np.argsort(forward, axis=1))))


def in_order(count):
    """The order that leaves `count` tokens where they are."""
    order = jnp.asarray(np.tile(np.arange(count, dtype=np.int32), (BATCH, 1)))
    return TokenOrder(order, order)


def tiles(allowed):
    return from_dense(jnp.asarray(allowed), 32, 32)


def absent_memory():
    """Candidates that are all holes, and entries that are not there."""
    return {"warped": warped_memory(holes=True), "entries": memory_entries(False)}


def everything(
    valid=((True,) * VIEWS,) * BATCH,
    control=(True,) * BATCH,
    allowed=True,
    entries_allowed=True,
    target=None,
    references=None,
    **memory,
):
    """All that the model can be given; with one shape, so that calls share one compilation.

    What is not said is switched off by values: no memory, every pair allowed, tokens in order.
    """
    kwargs = with_valid(valid)
    kwargs["control"] = kwargs["control"].replace(enabled=jnp.asarray(control))
    return {
        **kwargs,
        **absent_memory(),
        "block_mask": tiles(np.broadcast_to(allowed, (BATCH, JOINT, JOINT))),
        "entry_mask": tiles(np.broadcast_to(entries_allowed, (BATCH, TARGET, ENTRIES))),
        "token_order": StreamOrder(
            in_order(TARGET) if target is None else target,
            in_order(REFERENCE) if references is None else references,
        ),
        **memory,
    }


@pytest.mark.row("S18")
@pytest.mark.row("S20")
@pytest.mark.row("S28")
def test_all_that_is_switched_off_by_values_equals_what_is_not_given():
    close(run(params(), **everything()), full_output())


def with_memory(values, warped, entries):
    """The output to the bit, given both memories."""
    mask = dense_pattern(TARGET, ENTRIES, tile_q=32, tile_k=32)
    memory = {"warped": warped, "entries": entries, "entry_mask": mask}
    return np.asarray(run_alike(values, **inputs(), **memory))


@pytest.mark.row("S18")
@pytest.mark.row("S28")
def test_untrained_memory_slots_change_nothing():
    plain = SMALL.replace(warped_width=0, entry_width=0)
    old = random_params(plain)
    names = ("warped_attention", "entry_attention")

    @jax.jit
    def fresh(key):
        made = WorldStereo(SMALL).init(key, **smallest_inputs(SMALL))["params"]
        slots = {
            run_name: {name: made[run_name]["layers"]["backbone"][name] for name in names}
            for run_name in ("controlled", "blocks")
        }
        return made["warped_entry"], slots

    entry, slots = fresh(jax.random.key(3))
    grown = {**old, "warped_entry": entry}
    for run_name in slots:
        layers = old[run_name]["layers"]
        backbone = {**layers["backbone"], **slots[run_name]}
        grown[run_name] = {"layers": {**layers, "backbone": backbone}}
    before = run_alike(old, plain, **inputs())
    np.testing.assert_array_equal(before, with_memory(grown, warped_memory(), memory_entries()))
    warped = with_memory(params(), warped_memory(), memory_entries(False))
    assert differs(warped, full_output())
    assert differs(with_memory(params(), warped_memory(), memory_entries()), full_output())


@pytest.mark.row("S28")
@pytest.mark.row("S17")
def test_entries_that_are_not_there_contribute_exactly_nothing():
    valid = np.random.default_rng(5).random((BATCH, ENTRIES)) < 0.5
    entries = memory_entries(valid)
    poisoned = entries.replace(
        **{
            name: jnp.asarray(np.where(valid[..., None], getattr(entries, name), np.nan))
            for name in ("features", "place")
        }
    )
    output = functools.partial(with_memory, params(), warped_memory(holes=True))
    some = output(entries)
    np.testing.assert_array_equal(some, output(poisoned))
    assert differs(some, full_output())
    assert differs(some, output(memory_entries()))
    np.testing.assert_array_equal(output(memory_entries(False)), full_output())


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
    raster = run(params(), **everything(entries=entries, entries_allowed=allowed))
    kwargs = everything(entries=moved, entries_allowed=ordered, target=target)
    close(raster, run(params(), **kwargs))
    assert differs(raster, full_output())


@pytest.mark.row("S18")
@pytest.mark.row("S17")
def test_holes_contribute_exactly_nothing():
    holes = warped_memory(holes=True)
    holes = holes.replace(features=jnp.full_like(holes.features, jnp.nan))
    output = with_memory(params(), holes, memory_entries(False))
    np.testing.assert_array_equal(output, full_output())


@pytest.mark.row("S18")
def test_a_candidate_reaches_only_its_own_token_before_attention_mixes():
    memory = warped_memory()
    config = SMALL.replace(num_layers=1, control=None)
    small = random_params(config)
    # Entrance off, so that only the aligned keys and values of the one block are seen.
    small["warped_entry"] = jax.tree.map(jnp.zeros_like, small["warped_entry"])
    single = np.full(memory.log_weight.shape, -np.inf, np.float32)

    def output():
        warped = memory.replace(log_weight=jnp.asarray(single))
        return np.asarray(run(small, config, **without("control"), warped=warped))

    none = output()
    single[0, 0, 0, 0, 0] = memory.log_weight[0, 0, 0, 0, 0]
    touched = np.abs(output() - none).max(-1) > 1e-4
    assert touched[0, 0, :2, :2].all()
    assert touched.sum() == 4


@pytest.mark.row("S7")
def test_invalid_references_equal_no_references():
    invalid = run(params(), **everything(valid=np.zeros((BATCH, VIEWS), bool)))
    close(invalid, run(params(), **without("references")))
    assert differs(invalid, full_output())


@pytest.mark.row("S7")
def test_an_invalid_reference_influences_nothing():
    valid = np.array([[True, False, True], [False, True, True]])
    kwargs = with_valid(valid)
    latent = np.where(valid[:, :, None, None, None], kwargs["references"].latent, np.float32(1e3))
    other = {**kwargs, "references": kwargs["references"].replace(latent=jnp.asarray(latent))}
    close(run(params(), **kwargs), run(params(), **other))
    assert differs(run(params(), **kwargs), full_output())


@pytest.mark.row("S7")
@pytest.mark.row("S20")
def test_a_block_mask_respects_the_references_validity():
    valid = np.array([[True, False, True], [False, False, False]])
    close(run(params(), **everything(valid=valid)), run(params(), **with_valid(valid)))


@pytest.mark.row("S20")
def test_dense_block_mask_equals_the_official_dense_pattern():
    mask = dense_pattern(JOINT, JOINT, tile_q=32, tile_k=32)
    close(run(params(), **inputs(), block_mask=mask), full_output())


@pytest.mark.row("S20")
def test_patterns_are_chosen_per_layer():
    pairs = jnp.array([[0, 1], [2, -1]], jnp.int32)
    mask = frame_pair(
        pairs, references=VIEWS, tokens_per_frame=TOKENS_PER_FRAME, tile_q=32, tile_k=32
    )
    masks = {"frame_pair": mask, "correspondence": mask}

    def with_patterns(patterns, scan=True):
        config = SMALL.replace(attention_pattern=patterns, scan_layers=scan)
        values = params() if scan else unstack(jax.tree.map(np.asarray, params()), SMALL)
        return np.asarray(run(values, config, **inputs(), block_mask=masks))

    dense = with_patterns("dense")
    paired = with_patterns("frame_pair")
    mixed = with_patterns(("dense", "frame_pair", "correspondence"))
    close(dense, full_output())
    assert differs(paired, dense)
    assert differs(mixed, dense)
    assert differs(mixed, paired)
    close(mixed, with_patterns(("dense", "frame_pair", "correspondence"), scan=False))
    # One mask serves any pattern.
    close(paired, run(params(), **everything(allowed=np.asarray(mask.dense())[:, 0])))
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
    allowed = np.random.default_rng(2).random((BATCH, JOINT, JOINT)) < 0.4
    joint = np.concatenate([references.forward, np.asarray(target.forward) + REFERENCE], axis=1)
    ordered = np.stack([allowed[b][joint[b]][:, joint[b]] for b in range(BATCH)])
    kwargs = {
        "valid": [[True, False, True], [True] * 3],
        "warped": warped_memory(),
        "entries": memory_entries(),
    }
    raster = everything(**kwargs, allowed=allowed)
    if update_ref:
        del raster["token_order"]
    permuted = everything(**kwargs, allowed=ordered, target=target, references=references)
    close(run(params(), config, **raster), run(params(), config, **permuted))


ON_SURFACE = SMALL.replace(reference_positions="surface")


def with_places(shift=0.0):
    kwargs = without("control")
    kwargs["references"] = kwargs["references"].replace(
        place=3 * normal(13, BATCH, REFERENCE, 3) + shift,
        target_place=3 * normal(14, BATCH, TARGET, 3) + shift,
    )
    return kwargs


def test_of_places_on_the_surface_only_differences_count():
    """Neither the axes' origin, nor the order of tokens, nor the official index of a view."""
    order = StreamOrder(in_order(TARGET), in_order(REFERENCE))
    near = run(params(), ON_SURFACE, **with_places(), token_order=order)
    kwargs = with_places(shift=jnp.array([[[5.0, -2.0, 0.7]]]))
    kwargs["references"] = kwargs["references"].replace(
        index=jnp.zeros_like(kwargs["references"].index)
    )
    order = StreamOrder(permutation(0, TARGET), permutation(1, REFERENCE))
    close(near, run(params(), ON_SURFACE, **kwargs, token_order=order))
    assert differs(near, without_control())


def test_places_are_asked_for_by_name():
    for missing in ("place", "target_place"):
        kwargs = with_places()
        kwargs["references"] = kwargs["references"].replace(**{missing: None})
        with pytest.raises(InputError, match=rf"references\.{missing} is None, expected places"):
            run(params(), ON_SURFACE, **kwargs)


def test_reference_stream_is_reset_only_without_update_ref():
    reset = run(params(), SMALL.replace(update_ref=False), **everything())
    assert differs(reset, full_output())


@functools.cache
def without_control():
    return np.asarray(run(params(), **without("control")))


@pytest.mark.row("S17")
def test_control_switched_off_per_sample_equals_no_control():
    mixed = np.asarray(run(params(), **everything(control=[True, False])))
    full = np.asarray(full_output())
    close(mixed[0], full[0])
    close(mixed[1], without_control()[1])
    assert differs(mixed[1], full[1])


# Layers with all that a layer can have, so that none without control need be compiled beside them.
CONTROLLED = SMALL.replace(num_layers=2)
controlled_params = functools.cache(functools.partial(random_params, CONTROLLED))


@functools.cache
def gradient(config):
    """Of the mean square of the output, by the parameters and the warped memory."""

    @functools.partial(jax.grad, argnums=(0, 1))
    def slopes(params, memory, kwargs):
        out = jnp.asarray(WorldStereo(config).apply({"params": params}, **kwargs, warped=memory))
        return (out**2).mean()

    return jax.jit(slopes)


def gradient_of(config, values, holes):
    kwargs = with_valid([[False] * VIEWS, [True] * VIEWS])
    return gradient(config)(values, warped_memory(holes=holes), kwargs)


@functools.cache
def scanned_gradient(holes):
    return gradient_of(CONTROLLED, controlled_params(), holes)


@pytest.mark.row("S17")
@pytest.mark.parametrize("holes", [True, False])
def test_gradients_are_finite_with_and_without_holes(holes):
    gradients = jax.tree.map(np.asarray, scanned_gradient(holes))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert (np.abs(gradients[1].features).max() > 0) != holes


@pytest.mark.parametrize(("remat", "scan"), [("full", False), ("dots", True)])
def test_remat_and_stacking_change_neither_output_nor_gradient(remat, scan):
    config = CONTROLLED.replace(scan_layers=scan, remat=remat)
    values = (
        controlled_params()
        if scan
        else unstack(jax.tree.map(np.asarray, controlled_params()), CONTROLLED)
    )
    found, memory = gradient_of(config, values, False)
    expected, expected_memory = scanned_gradient(False)
    if not scan:
        expected = unstack(jax.tree.map(np.asarray, expected), CONTROLLED)
    compare = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(compare, (expected, expected_memory), (found, memory))


def test_one_text_token_takes_the_short_way_to_the_same_result():
    # Only backbone blocks read text.
    config = SMALL.replace(num_layers=1, control=None)
    values = random_params(config)
    kwargs = {name: inputs()[name] for name in ("latent", "timestep", "camera")}
    text = inputs()["text"][:, :1]
    one = run(values, config, **kwargs, text=text)
    close(one, run(values, config, **kwargs, text=np.repeat(text, 2, axis=1)))
    assert differs(one, run(values, config, **kwargs, text=2 * text))


def test_bfloat16_stays_near_float32():
    low = run(params(), SMALL.replace(dtype="bfloat16"), **inputs())
    assert low.dtype == jnp.float32
    full = np.asarray(full_output())
    error = np.abs(np.asarray(low) - full).max() / np.abs(full).max()
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
    tree = from_flat({path: shaped(*shape) for path, shape in shapes.items()})
    out = jax.eval_shape(lambda p, kw: WorldStereo(config).apply({"params": p}, **kw), tree, kwargs)
    assert out.shape == (1, frames, rows, columns, 16)
