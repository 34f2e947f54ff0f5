"""The state of a distillation, and the step that it threads through.

The networks share what none of them trains: the state holds the trained parameters of student and
fake score alone, and each network is made complete from the teacher's arrays, in the type that is
computed in. So a checkpoint of the run holds neither the teacher nor copies of frozen parts.
"""

import typing
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from worldstereo_jax.array_types import Array, Key, PyTree
from worldstereo_jax.training.batches import part_of
from worldstereo_jax.training.distill import (
    Metrics,
    Networks,
    draw,
    fake_score_loss,
    generator_loss,
)
from worldstereo_jax.training.official_objective import SHIFT
from worldstereo_jax.training.state import join, norm_of, running_average, sound, where_sound

FAKE_UPDATES = 5
"""Updates of the fake score for each of the student (DMD2, section 4.2)."""
_JUDGED = ("loss", "grad_norm")


class Optimizers(typing.NamedTuple):
    """Of the student and of the fake score."""

    student: optax.GradientTransformation
    fake: optax.GradientTransformation


class DistillState(flax.struct.PyTreeNode):
    """Everything a distillation step changes.

    student      the student's trained parameters, float32; nothing stands for those it shares
    student_opt  its optimiser's state
    ema          running average of `student`, the same tree
    fake         the fake score's trained parameters, the same tree
    fake_opt     its optimiser's state
    step         int32 scalar, updates of the student so far
    key          the typed random key that the run started with; a step folds its number into it

    Fields are typed Any, since tree transformations also put shapes in them.
    """

    student: PyTree
    student_opt: optax.OptState
    ema: PyTree
    fake: PyTree
    fake_opt: optax.OptState
    step: typing.Any
    key: typing.Any


DistillStep = Callable[[DistillState, PyTree, typing.Any], tuple[DistillState, Metrics]]


def init_distill_state(
    trained: PyTree, optimizers: Optimizers, key: Key[Array, ""]
) -> DistillState:
    """Start with student and fake score equal to the teacher.

    Args:
        trained: the teacher's parameters of what trains, of `state.split`, float32; copied.
        optimizers: keep what they keep.
        key: typed random key of the run.
    """

    def copy() -> PyTree:
        # Each its own: buffers that a step gives back in place must not be one another's.
        return jax.tree.map(lambda x: jnp.array(x, jnp.float32), trained)

    return DistillState(
        student=copy(),
        student_opt=optimizers.student.init(trained),
        ema=copy(),
        fake=copy(),
        fake_opt=optimizers.fake.init(trained),
        step=jnp.zeros((), jnp.int32),
        key=key,
    )


def make_distill_step(
    networks: Networks,
    optimizers: Optimizers,
    read: Callable[[typing.Any, Array], typing.Any],
    *,
    fake_updates: int = FAKE_UPDATES,
    shift: float = SHIFT,
    ema_decay: float = 0.999,
    places: DistillState | None = None,
) -> DistillStep:
    """A jitted `step(state, teacher, batch) -> (state, metrics)`, which reuses the state's buffers.

    The fake score is updated `fake_updates` times, each time on clips that the student makes under
    conditions of their own, then the student once. The metrics are those of `generator_loss`, its
    `loss` and `grad_norm`, and `fake_loss` and `fake_grad_norm`, means over the updates. When any
    of these losses or gradients is not finite, nothing but the step's number changes; `skipped`
    says so, as in `state.make_train_step`.

    Args:
        networks: what they compute.
        optimizers: of student and fake score.
        read: (batch, key) -> conditions; part of the step, for what is better drawn than stored.
        fake_updates: how many.
        shift: flow shift of the noise levels at which scores are compared.
        ema_decay: see `state.running_average`.
        places: the sharding of every array of the state, for a run on a mesh
            (`sharding.TrainLayout.kept`); what goes in must lie so, and comes out so.

    The step's arguments:
        state: is given up.
        teacher: all parameters of the teacher, in the type that is computed in.
        batch: arrays with a leading axis of (fake_updates + 1) times as many samples as an update
            takes; each update takes every so manieth, so that samples stay where they lie.
    """
    parts = fake_updates + 1

    def step(state: DistillState, teacher: PyTree, batch: typing.Any):
        step_key = jax.random.fold_in(state.key, state.step)

        def computing(trained: PyTree) -> PyTree:
            """A whole network, in the teacher's types."""
            whole = join(teacher, trained)
            return jax.tree.map(lambda x, like: x.astype(like.dtype), whole, teacher)

        def given(number: Array):
            read_key, draw_key = jax.random.split(jax.random.fold_in(step_key, number))
            conditions = read(part_of(batch, number, parts), read_key)
            shape = networks.shape(conditions)
            return conditions, draw(draw_key, shape, networks.schedule, shift=shift)

        # Brought into that type once, for all the clips that it makes.
        student = computing(state.student)

        def update_fake(carry, number: Array):
            fake, opt_state = carry
            conditions, draws = given(number)

            def loss_fn(fake: PyTree):
                return fake_score_loss(networks, computing(fake), student, conditions, draws)

            (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(fake)
            updates, opt_state = optimizers.fake.update(grads, opt_state, fake)
            fake = optax.apply_updates(fake, updates)
            return (fake, opt_state), (loss, norm_of(grads))

        (fake, fake_opt), (fake_loss, fake_norm) = jax.lax.scan(
            update_fake, (state.fake, state.fake_opt), jnp.arange(fake_updates)
        )
        conditions, draws = given(jnp.asarray(fake_updates))
        score = computing(fake)

        def loss_fn(student: PyTree):
            return generator_loss(networks, computing(student), teacher, score, conditions, draws)

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.student)
        updates, student_opt = optimizers.student.update(grads, state.student_opt, state.student)
        trained = optax.apply_updates(state.student, updates)
        metrics = {
            **metrics,
            "loss": loss,
            "grad_norm": norm_of(grads),
            "fake_loss": fake_loss.mean(),
            "fake_grad_norm": fake_norm.mean(),
        }
        kept = sound(*(metrics[f"{name}{of}"] for name in ("", "fake_") for of in _JUDGED))
        metrics["skipped"] = 1.0 - kept
        new_state = state.replace(
            student=trained,
            student_opt=student_opt,
            ema=running_average(state.ema, trained, state.step, ema_decay),
            fake=fake,
            fake_opt=fake_opt,
        )
        return where_sound(kept, new_state, state).replace(step=state.step + 1), metrics

    if places is None:
        return jax.jit(step, donate_argnums=0)
    whole = NamedSharding(places.step.mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=(places, whole))
