"""Functions that read the memory are swapped in a world, and the model sees the difference."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.fills import BitFill, GeometryFill
from pallas_kernels.soft_fill import SoftFill
from worldstereo_jax.memory.entry_tokens import entry_block_mask, select_entry_tokens
from worldstereo_jax.memory.masks import reference_block_mask
from worldstereo_jax.sampling.conditions import gather_conditions
from worldstereo_jax.sampling.denoise import model_inputs
from worldstereo_jax.sampling.reading import READING
from worldstereo_jax.sampling.token_reading import MOST_NUMBERS, evaluated
from worldstereo_jax.sampling.warp_reading import path_views, read_entries, read_warps

CANDIDATES = 7000
"""Fewer than the bank has slots, more than it holds."""


@pytest.mark.row("S10")
def test_what_no_camera_of_the_path_sees_is_not_read(world, params, memory, cameras):
    """By tracing alone: the functions are offered the entries in view, or else all."""
    capacities = []

    def complete(warped, entries, w2c, intrinsics):
        capacities.append(entries.capacity)
        return warped

    def select(bank, *rest, count):
        capacities.append(bank.capacity)
        return select_entry_tokens(bank, *rest, count=count)

    reading = READING._replace(complete_warp=complete, select_entries=select)
    config = dataclasses.replace(world.rollout, entry_candidates=CANDIDATES)
    some = dataclasses.replace(world, reading=reading, rollout=config)
    jax.eval_shape(functools.partial(gather_conditions, some), params.vae, memory, cameras)
    assert capacities == 2 * [CANDIDATES, memory.entries.capacity]


@pytest.fixture(scope="module")
def told(gather, grown, revisit):
    """What is read of a memory that holds more views than are attended to."""
    return gather(grown, revisit)


def entries_read(config, reading, memory, path, told):
    """The entries of `gather_conditions`, by themselves."""
    conditions, guidance = told
    views = path_views(guidance.depth, guidance.confidence, path)
    attended = jnp.arange(config.references), conditions.reference_valid
    return read_entries(config, reading, memory.entries, views, *attended)


@pytest.mark.slow
@pytest.mark.row("S10")
def test_what_a_clip_reads_of_the_entries_in_view_is_what_it_reads_of_all(
    world, told, grown, revisit
):
    """By the two stages of `gather_conditions` that look at entries."""
    some = dataclasses.replace(world.rollout, entry_candidates=CANDIDATES)

    @jax.jit
    def read(*given):
        memory, path, _ = given
        return [
            (read_warps(c, READING, memory, path), entries_read(c, READING, *given))
            for c in (some, world.rollout)
        ]

    part, whole = read(grown, revisit, told)
    assert whole[1].valid.any()
    for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.row("S15")
@pytest.mark.row("S28")
def test_selection_warp_and_masks_are_functions_of_the_world(world, told, grown, revisit):
    def unattended(bank, targets, attended, attended_valid, *, count):
        unseen = jnp.zeros_like(attended_valid)
        return select_entry_tokens(bank, targets, attended, unseen, count=count)

    reading = READING._replace(
        select_entries=unattended,
        complete_warp=lambda warped, entries, w2c, intrinsics: warped,
        reference_mask=functools.partial(reference_block_mask, strength=2.0),
        entry_mask=functools.partial(entry_block_mask, strength=2.0),
    )
    config = world.denoiser.config

    @jax.jit
    def masks(*given):
        entries = entries_read(world.rollout, reading, *given)
        conditions = dataclasses.replace(given[-1][0], entries=entries)
        batch = jax.tree.map(lambda leaf: leaf[None], conditions)
        noisy = jnp.zeros(batch.render_latent.shape)
        soft = model_inputs(config, noisy, jnp.ones(1), batch, reading=reading).kwargs
        hard = model_inputs(config, noisy, jnp.ones(1), batch).kwargs
        return entries, [(k["block_mask"], k["entry_mask"]) for k in (soft, hard)]

    entries, (soft, hard) = masks(grown, revisit, told)
    assert entries.valid.all()
    # Every view counts as new.
    np.testing.assert_array_equal(np.asarray(entries.features)[:, -1], 1.0)
    # Looked into once for all layers, which none of the kernels does as fast.
    assert all(isinstance(mask.fill, SoftFill) for mask in soft)
    assert all(isinstance(mask.fill, BitFill) for mask in hard)
    # The hard mask of entries allows what the soft one favours, and no more.
    allowed = np.asarray(hard[1].dense())
    assert allowed.any()
    assert (allowed <= np.asarray(soft[1].dense())).all()


@pytest.mark.parametrize(
    "device", ["TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x", "NVIDIA H200"]
)
def test_no_layer_evaluates_the_predicate_unless_numbers_would_not_fit(device):
    """By the static schedule it costs up to four times as much as what is packed."""
    tile_q, tile_k, _ = pk.best_tiles(device)

    def fill(tokens: int, strength: float | None):
        def build(position):
            token = pk.make_token_geometry(position, radius=1.0)
            return evaluated(
                pk.from_geometry(token, token, strength=strength, tile_q=tile_q, tile_k=tile_k)
            )

        return jax.eval_shape(build, jax.ShapeDtypeStruct((1, tokens, 3), jnp.float32)).fill

    assert isinstance(fill(32_768, None), BitFill)
    most = int((MOST_NUMBERS // 4) ** 0.5)
    assert isinstance(fill(most, 1.0), SoftFill)
    assert isinstance(fill(most + 1, 1.0), GeometryFill)
