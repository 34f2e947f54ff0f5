import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from tests.models.small_model import SMALL, inputs, random_params
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.training.batches import SeededBatches
from worldstereo_jax.training.checkpoint import Checkpoints
from worldstereo_jax.training.sharding import (
    AXES,
    TrainLayout,
    join_hosts,
    open_layout,
    parse_mesh,
)
from worldstereo_jax.training.state import make_train_step, only, split

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.01))


def layout_of(text):
    return TrainLayout(parse_mesh(text))


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("fsdp=8", (1, 8, 1)),
        ("data=2, fsdp=-1,model=2", (2, 2, 2)),
        ("model=-1,data=1", (1, 1, 8)),
    ],
)
def test_a_mesh_is_read(text, shape):
    mesh = parse_mesh(text)
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == shape


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fsdp=3", "use the 8 devices up"),
        ("rows=8", "expected each of data, fsdp, model"),
        ("fsdp=4,fsdp=2", "once at most"),
        ("fsdp=-1,model=-1", "-1 once at most"),
        ("fsdp=eight", "fsdp is 'eight', expected a number"),
        ("fsdp=0", "fsdp is '0'"),
        ("", "expected each of"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse_mesh(text)


def test_hosts_without_a_mesh_or_with_half_an_address_are_refused(monkeypatch):
    assert open_layout(None) is None
    assert dict(open_layout("fsdp=-1").mesh.shape) == {"data": 1, "fsdp": 8, "model": 1}
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(InputError, match="each of 4 hosts would train for itself"):
        open_layout(None)
    for given in (["host:1"], ["host:1", "two", "0"]):
        with pytest.raises(InputError, match=r"--distributed is 'host:1.*, expected nothing, or"):
            join_hosts(given)


def test_other_axes_and_heads_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="mesh has axes"):
        TrainLayout(Mesh(np.array(jax.devices()), ("model",)))
    with pytest.raises(InputError, match="model=8 does not divide the"):
        layout_of("model=8").model(SMALL)


def test_what_the_optimiser_keeps_lies_where_its_parameter_does():
    layout = layout_of("data=2,fsdp=2,model=2")
    kernel = jnp.ones((3, 128, 256))
    params = {"blocks": {"layers": {"query": {"kernel": kernel, "bias": jnp.ones((3, 256))}}}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = layout.init_state(params, optimizer, jax.random.key(0))
    spread = PartitionSpec(None, "fsdp", "model")
    large = [x for x in jax.tree.leaves(state) if x.shape == kernel.shape]
    # Parameter, average, first and second moment.
    assert len(large) == 4
    assert all(x.sharding.spec == spread for x in large)
    assert large[0].addressable_shards[0].data.shape == (3, 64, 128)
    vectors = [x for x in jax.tree.leaves(state) if x.shape == (3, 256)]
    assert len(vectors) == 4
    assert all(x.sharding.spec == PartitionSpec(None, "model") for x in vectors)
    assert state.step.sharding.is_fully_replicated
    # Of a bias that does not train nothing is kept.
    trained, _ = split(params, only(params, "kernel"))
    state = layout.init_state(trained, optimizer, jax.random.key(0))
    assert {x.shape for x in jax.tree.leaves(state) if x.ndim} == {kernel.shape}


def test_a_run_goes_on_on_another_mesh(tmp_path):
    params = {"query": {"kernel": jnp.arange(128.0 * 256).reshape(128, 256)}}
    batches = SeededBatches(lambda rng: rng.normal(size=4), 0)

    def state_on(text, scale):
        given = jax.tree.map(lambda x: scale * x, params)
        return layout_of(text).init_state(given, OPTIMIZER, jax.random.key(int(scale)))

    saved = state_on("fsdp=8", 3.0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved, batches)
    other = state_on("data=2,model=4", 1.0)
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(other, batches)
    np.testing.assert_array_equal(found.params["query"]["kernel"], 3.0 * params["query"]["kernel"])
    assert jax.tree.map(lambda x: x.sharding, found.params) == jax.tree.map(
        lambda x: x.sharding, other.params
    )
    assert (jax.random.key_data(found.key) == jax.random.key_data(saved.key)).all()


def test_a_batch_is_split_over_samples_and_whole_along_the_model():
    layout = layout_of("data=2,fsdp=2,model=2")
    given = {"x": np.arange(24).reshape(8, 3)}
    assert layout.rows(8) == tuple(range(8))
    placed = layout.batch(given)["x"]
    np.testing.assert_array_equal(placed, given["x"])
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
    with pytest.raises(InputError, match="batch of 6 samples, expected a multiple of 4"):
        layout.rows(6)


def loss_of(model):
    def loss(params, batch, key):
        noise = jax.random.normal(key, batch["latent"][..., :16].shape)
        latent = jnp.concatenate(
            [batch["latent"][..., :16] + noise, batch["latent"][..., 16:]], axis=-1
        )
        out = model.apply({"params": params}, **{**batch, "latent": latent})
        return jnp.mean((out - noise) ** 2), {"out": jnp.mean(out)}

    return loss


@pytest.mark.slow
def test_training_on_a_mesh_is_training_on_one_device():
    """Three steps of the whole model with references and control branch: the same parameters."""
    config = SMALL.replace(num_layers=2, remat="full")
    config = config.replace(control=dataclasses.replace(SMALL.control, num_layers=1))
    params = random_params(config)
    given = inputs()
    batch = jax.tree.map(lambda x: np.tile(x, (4, *[1] * (x.ndim - 1))), given)
    rng = np.random.default_rng(0)
    batch["latent"] = batch["latent"] + rng.normal(size=batch["latent"].shape).astype("float32")

    layout = dataclasses.replace(layout_of("data=2,fsdp=2,model=2"), smallest=1)
    key = jax.random.key(3)
    found = layout.init_state(params, OPTIMIZER, key)
    split = jax.tree.map(lambda x: x.sharding, found)
    query = found.params["blocks"]["layers"]["backbone"]["self_attention"]["query"]["kernel"]
    assert query.sharding.spec == PartitionSpec(None, "fsdp", "model")
    step = make_train_step(loss_of(layout.model(config)), OPTIMIZER, places=layout.state(found))
    alone = TrainLayout(parse_mesh("data=1", devices=jax.devices()[:1]))
    wanted = alone.init_state(params, OPTIMIZER, key)
    single = make_train_step(loss_of(WorldStereo(config)), OPTIMIZER)
    for _ in range(3):
        found, metrics = step(found, layout.batch(batch))
        wanted, expected = single(wanted, batch)
        for name in ("loss", "grad_norm", "out"):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-4, atol=1e-6)
    assert jax.tree.map(lambda x: x.sharding, found) == split
    for a, b in zip(*(jax.tree.leaves(x.params) for x in (found, wanted)), strict=True):
        # Adam divides by the gradient's size: where that is rounding, so is the step's direction.
        np.testing.assert_allclose(a, b, atol=2e-3)
        assert np.mean(np.abs(np.asarray(a) - np.asarray(b)) < 2e-5) > 0.99
