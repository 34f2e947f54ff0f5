"""How a clip reads the spatial-stereo memory: functions that can be swapped, the model untouched.

A world, small or official, carries a `Reading`, whose functions are called where clips read.
Soft masks instead of hard ones, and entries chosen by confidence alone:

    def surest(bank, targets, attended, attended_valid, *, count):
        unseen = jnp.zeros_like(attended_valid)
        return select_entry_tokens(bank, targets, attended, unseen, count=count)

    reading = READING._replace(
        select_entries=surest,
        reference_mask=functools.partial(reference_block_mask, strength=2.0),
        entry_mask=functools.partial(entry_block_mask, strength=2.0),
    )
    world = dataclasses.replace(world, reading=reading)
"""

import typing
from collections.abc import Callable

from pallas_kernels import BlockMask
from worldstereo_jax.memory.coverage import Retrieved, retrieve_by_coverage
from worldstereo_jax.memory.entry_completion import add_entries
from worldstereo_jax.memory.entry_tokens import EntryTokens, entry_block_mask, select_entry_tokens
from worldstereo_jax.memory.masks import reference_block_mask
from worldstereo_jax.memory.warping import Candidates, Warped, candidate_warp


class Reading(typing.NamedTuple):
    """The functions by which a clip reads the spatial-stereo memory; all run inside jit.

    retrieve: which stored views serve a path, as `retrieve_by_coverage` (row S26).
    warp: from stored views the function that carries them into one camera, as `candidate_warp`
        (row S18); called with its keywords `k`, `measured` and `refuted`.
    complete_warp: what entries add to the fused warp, as `add_entries` (row S28).
    select_entries: which entries become tokens, as `select_entry_tokens` (row S28). Either is given
        a bank without what no camera of the path sees where that saves time (row S10).
    reference_mask: (reference geometry, target geometry) -> block mask over both, in this order,
        as `reference_block_mask` (rows S14, S20).
    entry_mask: (entries' geometry, target geometry) -> block mask of the target by the entries,
        as `entry_block_mask` (rows S14, S17).
    """

    retrieve: Callable[..., Retrieved] = retrieve_by_coverage
    warp: Callable[..., Callable[..., Candidates]] = candidate_warp
    complete_warp: Callable[..., Warped] = add_entries
    select_entries: Callable[..., EntryTokens] = select_entry_tokens
    reference_mask: Callable[..., BlockMask] = reference_block_mask
    entry_mask: Callable[..., BlockMask] = entry_block_mask


READING = Reading()
"""What worlds use unless told otherwise: hard masks, retrieval and selection by what is visible."""
