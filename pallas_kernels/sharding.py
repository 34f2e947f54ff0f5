"""Attention under a block mask, split over the chips of a mesh by `jax.shard_map`.

A kernel is one chip's program, and XLA cannot split it. Heads are split first: they share nothing
but the mask, so nothing travels. Where there are more chips than heads, query tiles are dealt out
to them in turn (neighbours along the sequence cost alike, and in blocks would leave chips idle);
every chip then holds all keys. The batch is split as data always is, and so are masks where they
are built (`by_samples`): XLA would have every chip build those of all samples.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable

import jax
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float

from pallas_kernels.api import Attended, block_sparse_attention
from pallas_kernels.block_mask import BlockMask
from pallas_kernels.fills import FrameFill, GeometryFill
from pallas_kernels.query_dealing import QueryDealing, stands_for_rows

__all__ = ["AttentionSharding", "by_samples", "sharded_attention"]


@dataclasses.dataclass(frozen=True)
class AttentionSharding:
    """Which mesh axis splits what; None leaves it whole.

    mesh     the chips, which the kernel is chosen for.
    heads    axis over the attention heads; its size must divide their number.
    queries  axis over the tiles of queries.
    batch    axis over the samples, or several; their size must divide the number of samples.

    Raises ValueError for an axis that the mesh has not, or that is given twice.
    """

    mesh: Mesh
    heads: str | None = None
    queries: str | None = None
    batch: str | tuple[str, ...] | None = None

    def __post_init__(self):
        axes = [name for x in (self.heads, self.queries, self.batch) for name in _names(x)]
        for axis in axes:
            if axis not in self.mesh.axis_names:
                raise ValueError(f"the mesh has axes {self.mesh.axis_names}, and not {axis!r}")
            if axes.count(axis) > 1:
                raise ValueError(f"mesh axis {axis!r} cannot split two things")

    def parts(self, axis: str | tuple[str, ...] | None) -> int:
        """Chips along an axis or several, 1 for None."""
        return math.prod(self.mesh.shape[name] for name in _names(axis))


def _names(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if axis is None:
        return ()
    return (axis,) if isinstance(axis, str) else axis


def by_samples(
    build: Callable[..., typing.Any], sharding: AttentionSharding | None, *arguments: typing.Any
) -> typing.Any:
    """`build(*arguments)`, every chip building what belongs to its own samples.

    For what becomes of each sample apart from the others, such as its mask. XLA cannot see that a
    loop over the tiles of all samples could be split, and would give every chip all of it.

    build: arrays with a leading axis of samples, in trees, to others of that kind.
    sharding: its `batch` says what splits the samples; without one the call is an ordinary one.

    Raises ValueError when the samples cannot be split evenly.
    """
    if sharding is None or sharding.parts(sharding.batch) == 1:
        return build(*arguments)
    for size in {x.shape[0] for x in jax.tree.leaves(arguments)}:
        _check_even(size, "samples", sharding, sharding.batch)
    samples = PartitionSpec(sharding.batch)
    split = jax.shard_map(build, mesh=sharding.mesh, in_specs=samples, out_specs=samples)
    return split(*arguments)


def _check_even(
    size: int, what: str, sharding: AttentionSharding, axis: str | tuple[str, ...] | None
) -> None:
    if size % sharding.parts(axis):
        raise ValueError(
            f"{size} {what} cannot be split evenly over the {sharding.parts(axis)} chips of "
            f"mesh axis {axis!r}"
        )


def sharded_attention(
    q: Float[Array, "b tq heads d"],
    k: Float[Array, "b tk heads d"],
    v: Float[Array, "b tk heads dv"],
    mask: BlockMask,
    sharding: AttentionSharding,
    *,
    scale: float | None = None,
    implementation: str | None = None,
    return_lse: bool = False,
    normalisation: str = "allowed",
) -> Attended:
    """`block_sparse_attention` on a mesh; the result is split by samples and heads as q is.

    The mask is data here too, and differentiable in its strength. With `sharding.queries` its
    partial tiles are packed or straight from geometry, or it has none. Raises ValueError where
    heads, samples or the mask cannot be split, and for what `block_sparse_attention` refuses; the
    implementation is chosen for the mesh's chips, which need not be here.
    """
    for axis, size, what in (
        (sharding.heads, q.shape[2], "heads"),
        (sharding.batch, q.shape[0], "samples"),
    ):
        _check_even(size, what, sharding, axis)
    attend = functools.partial(
        block_sparse_attention,
        scale=scale,
        implementation=implementation,
        return_lse=True,
        normalisation=normalisation,
    )
    if sharding.mesh.size == 1:
        out, lse = attend(q, k, v, mask)
        return (out, lse) if return_lse else out
    tokens = PartitionSpec(sharding.batch, None, sharding.heads)
    split = functools.partial(jax.shard_map, mesh=sharding.mesh)
    specs = _mask_specs(mask, sharding)
    if sharding.queries is None:
        run = split(attend, in_specs=(tokens, tokens, tokens, specs), out_specs=(tokens, tokens))
        out, lse = run(q, k, v, mask)
    else:
        dealing = QueryDealing(mask, sharding.parts(sharding.queries))
        rows = PartitionSpec(sharding.batch, None, sharding.queries, None, sharding.heads)

        def attend_share(q, k, v, mask):
            found = attend(dealing.share(q), k, v, dealing.share_mask(mask))
            return jax.tree.map(dealing.as_dealt, found)

        run = split(attend_share, in_specs=(rows, tokens, tokens, specs), out_specs=(rows, rows))
        found = run(dealing.deal(q), k, v, dealing.deal_mask(mask))
        out, lse = (dealing.collect(x) for x in found)
    return (out, lse) if return_lse else out


def _mask_specs(mask: BlockMask, sharding: AttentionSharding) -> typing.Any:
    """How a mask is split, its query tiles dealt out where they are: a tree of specs."""

    def spec(x: Array, *, heads: bool, dealt: bool) -> PartitionSpec:
        axes = [(sharding.batch, x.shape[0])]
        if heads:
            axes.append((sharding.heads, x.shape[1]))
        # What has one sample or head is shared by all.
        names = [None if size == 1 else axis for axis, size in axes]
        if dealt and sharding.queries is not None:
            names += [None, sharding.queries]
        return PartitionSpec(*names)

    def node(path: typing.Any, x: typing.Any) -> typing.Any:
        if not isinstance(x, GeometryFill | FrameFill):
            return spec(x, heads=True, dealt=stands_for_rows(path))
        # Their arrays have no axis of heads.
        return jax.tree_util.tree_map_with_path(
            lambda inner, y: spec(y, heads=False, dealt=stands_for_rows((*path, *inner))), x
        )

    return jax.tree_util.tree_map_with_path(
        node, mask, is_leaf=lambda x: isinstance(x, GeometryFill | FrameFill)
    )
