"""The training state: one frozen pytree that a step takes and returns."""

import typing
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from worldstereo_jax.errors import InputError
from worldstereo_jax.training.batches import part_of

Params = typing.Any
Batch = typing.Any
Metrics = dict[str, jax.Array]
LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]


@typing.runtime_checkable
class RunState(typing.Protocol):
    """What the loop and the checkpoints ask of a training state, a frozen pytree."""

    @property
    def step(self) -> typing.Any:
        """Steps taken so far, int32 scalar."""
        ...

    @property
    def key(self) -> typing.Any:
        """The typed random key that the run started with."""
        ...

    def replace(self, **changes: typing.Any) -> typing.Any:
        """The state with other fields."""
        ...


State = typing.TypeVar("State", bound=RunState)


class TrainState(flax.struct.PyTreeNode):
    """Everything a training step changes.

    params     the parameters that train, float32; see `split`
    opt_state  the optimiser's state
    step       int32 scalar, optimiser steps taken so far
    key        the typed random key that the run started with; a step folds its number into it
    ema        running average of `params`, the same tree, or None when none is kept

    Fields are typed Any, since tree transformations also put shapes or None in them.
    """

    params: Params
    opt_state: optax.OptState
    step: typing.Any
    key: typing.Any
    ema: Params | None = None


def init_train_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    with_ema: bool = True,
) -> TrainState:
    """Start training from `params`; the average starts as a copy of them."""
    return TrainState(
        params=params,
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        key=key,
        ema=jax.tree.map(jnp.array, params) if with_ema else None,
    )


def only(params: Params, *modules: str) -> Params:
    """Which parameters belong to any of these modules: a tree of booleans like `params`.

    A module is named by its name, or by those of several that lie in each other, such as
    "backbone/ffn"; it counts wherever it lies. Raises InputError for one that has no parameters.
    """
    chosen = [_belonging(params, module) for module in modules]
    return jax.tree.map(lambda *each: any(each), *chosen)


def all_but(params: Params, *modules: str) -> Params:
    """Which parameters belong to none of these modules; see `only`."""
    return jax.tree.map(lambda inside: not inside, only(params, *modules))


def any_of(params: Params, *modules: str) -> Params:
    """`only`, where some of the modules may have no parameters; InputError when none has any."""
    flat = flatten_dict(jax.tree.map(lambda _: True, params), sep="/")
    there = [name for name in modules if any(f"/{name}/" in f"/{path}/" for path in flat)]
    return only(params, *(there or modules))


def _belonging(params: Params, module: str) -> Params:
    def belongs(path: tuple[typing.Any, ...], _: typing.Any) -> bool:
        return f"/{module}/" in f"/{jax.tree_util.keystr(path, simple=True, separator='/')}/"

    chosen = jax.tree_util.tree_map_with_path(belongs, params)
    if not any(jax.tree.leaves(chosen)):
        raise InputError(f"no parameters belong to a module {module!r}")
    return chosen


def split(params: Params, chosen: Params) -> tuple[Params, Params]:
    """What is chosen, and the rest: two trees, each without the branches of the other.

    A run that keeps the first alone in its state has no gradients, moments or average of the rest,
    and does not save it; `join` is the inverse.

    Args:
        params: nested dict of arrays.
        chosen: a tree of booleans like it, see `only`.
    """
    flat, keep = flatten_dict(params), flatten_dict(chosen)
    trained = {path: leaf for path, leaf in flat.items() if keep[path]}
    rest = {path: leaf for path, leaf in flat.items() if not keep[path]}
    return unflatten_dict(trained), unflatten_dict(rest)


def join(*trees: Params) -> Params:
    """One tree of several nested dicts; of a leaf that several have, the last one's counts."""
    flat: dict[tuple[str, ...], typing.Any] = {}
    for tree in trees:
        flat.update(flatten_dict(tree))
    return unflatten_dict(flat)


def averaged(state: TrainState) -> Params:
    """The averaged parameters; without an average the parameters themselves."""
    return state.params if state.ema is None else state.ema


def running_average(ema: Params, params: Params, step: jax.Array, decay: float) -> Params:
    """The average after one more step; `step` counts those before.

    It warms up, as min(decay, (1 + step) / (10 + step)), so that a short run's average does not
    remember the initial parameters.
    """
    taken = jnp.asarray(step, jnp.float32)
    kept = jnp.minimum(decay, (1.0 + taken) / (10.0 + taken))
    return jax.tree.map(lambda old, new: kept * old + (1.0 - kept) * new, ema, params)


def norm_of(grads: Params) -> jax.Array:
    """Euclidean norm over all of a tree's arrays."""
    return jnp.sqrt(sum(jnp.vdot(grad, grad) for grad in jax.tree.leaves(grads)))


def sound(*figures: jax.Array) -> jax.Array:
    """Whether all of these are finite: a boolean scalar."""
    return jnp.stack([jnp.isfinite(figure) for figure in figures]).all()


def where_sound(kept: jax.Array, new: State, old: State) -> State:
    """`new` where `kept` (a boolean scalar), else `old`, for all but the run's typed key."""
    # Outside the tree: `where` takes no typed keys on a mesh of several hosts.
    key = old.key
    chosen = jax.tree.map(
        lambda a, b: jnp.where(kept, a, b), new.replace(key=None), old.replace(key=None)
    )
    return chosen.replace(key=key)


def accumulated_gradients(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    parts: int,
    part: Callable[[Batch, jax.Array, int], Batch] = part_of,
    places: Params | None = None,
) -> tuple[jax.Array, Metrics, Params]:
    """Loss, metrics and gradients as means over parts of a batch that are taken one by one.

    So a batch costs no more memory than one of its parts, beside one more copy of the gradients.
    Each part has a random key of its own, `fold_in(key, number)`.

    Args:
        loss_fn: of `make_train_step`.
        params: to differentiate by.
        batch: as `part` takes it.
        key: random key.
        parts: how many; as many samples in each.
        part: (batch, number, parts) -> the part; the number is traced.
        places: where the sums of gradients lie on a mesh, a tree of shardings like `params`.
    """

    def one(number: jax.Array) -> tuple[jax.Array, Metrics, Params]:
        own = part(batch, number, parts)
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, own, jax.random.fold_in(key, number)
        )
        return loss, metrics, grads

    def add(total: typing.Any, number: jax.Array) -> tuple[typing.Any, None]:
        return jax.tree.map(lambda a, b: a + b / parts, total, one(number)), None

    shapes = jax.eval_shape(one, jnp.zeros((), jnp.int32))
    loss, metrics, grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    if places is not None:
        grads = jax.lax.with_sharding_constraint(grads, places)
    return jax.lax.scan(add, (loss, metrics, grads), jnp.arange(parts))[0]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.999,
    places: TrainState | None = None,
    parts: int = 1,
    part: Callable[[Batch, jax.Array, int], Batch] = part_of,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Return a jitted `step(state, batch) -> (state, metrics)`, which reuses the state's buffers.

    `loss_fn(params, batch, key) -> (loss, metrics)`. The metrics gain `loss`, `grad_norm` and
    `skipped`: 1 where loss or gradient was not finite. Such a step changes nothing but its number,
    so that one bad batch costs one update and not the run; `loop.train` stops when many follow one
    another. `places` holds the sharding of every array of the state, for a run on a mesh
    (`sharding.TrainLayout.state`); what goes in must lie so, and comes out so. With `parts` above 1
    the gradient is accumulated, see `accumulated_gradients`.

    Without `places`, where any array is bound to a device, as those of a loaded checkpoint are,
    bind the state before the first step (`jax.device_put(state, jax.devices()[0])`): what a step
    returns is, and the second one would be compiled again.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if parts == 1:
            (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                state.params, batch, key
            )
        else:
            loss, metrics, grads = accumulated_gradients(
                loss_fn, state.params, batch, key, parts=parts, part=part,
                places=None if places is None else places.params,
            )  # fmt: skip
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = running_average(ema, params, state.step, ema_decay)
        norm = norm_of(grads)
        kept = sound(loss, norm)
        metrics = dict(metrics, loss=loss, grad_norm=norm, skipped=1.0 - kept)
        new_state = state.replace(params=params, opt_state=opt_state, ema=ema)
        return where_sound(kept, new_state, state).replace(step=state.step + 1), metrics

    if places is None:
        return jax.jit(step, donate_argnums=0)
    mesh = places.step.mesh
    return jax.jit(
        step, donate_argnums=0, out_shardings=(places, NamedSharding(mesh, PartitionSpec()))
    )
