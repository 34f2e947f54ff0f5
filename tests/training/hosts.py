"""One host of a small training run on a mesh of eight devices, for `test_hosts.py`.

    python hosts.py OUT STEPS RESUME PORT COUNT INDEX

Prints each batch's number, and at the end what the state is.
"""

import hashlib
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from tests.models.small_model import SMALL
from worldstereo_jax.interop.official import model_places, parameter_shapes
from worldstereo_jax.interop.streaming import stream_params
from worldstereo_jax.interop.tensor_source import open_weights
from worldstereo_jax.training.batches import SeededBatches
from worldstereo_jax.training.loop import train
from worldstereo_jax.training.sharding import TrainLayout, parse_mesh
from worldstereo_jax.training.state import make_train_step

OPTIMIZER = optax.adam(0.01)
BATCH = 8


def loss_fn(params, batch, key):
    noise = 0.1 * jax.random.normal(key, batch.shape)
    hidden = jnp.tanh((batch + noise) @ params["query"]["kernel"]) @ params["out"]["kernel"]
    return jnp.mean((hidden - batch) ** 2), {}


class Rows:
    """This host's rows of seeded batches; slow, so that a signal finds the run under way."""

    def __init__(self, rows):
        self.rows = rows
        self.inner = SeededBatches(lambda rng: rng.normal(size=(BATCH, 16)).astype("float32"), 0)
        self.get_state, self.set_state = self.inner.get_state, self.inner.set_state

    def __next__(self):
        time.sleep(float(os.environ.get("SECONDS_PER_STEP", "0")))
        print("batch", self.inner.get_state()["position"], flush=True)
        return next(self.inner)[list(self.rows)]


def check_loading(layout, folder):
    """A model's weights arrive on all hosts, each of which reads its parts of every tensor."""
    source = open_weights(folder)
    table = model_places(SMALL), parameter_shapes(SMALL)
    loaded = stream_params([source], *table, placement=layout.place_parameter)
    kernel = loaded.params["blocks"]["layers"]["backbone"]["ffn"]["up"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp", "model")
    # The first layers run with the control branch, in a stack of their own.
    expected = source[f"blocks.{SMALL.controlled_layers}.ffn.net.0.proj.weight"].T
    np.testing.assert_array_equal(layout.gather(kernel)[0], expected)
    print("loaded", flush=True)


def main(out, steps, resume, port, count, index):
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", count, index)
    mesh = parse_mesh("data=2,fsdp=2,model=2")
    # So that a host's samples do not follow one another, as on a torus of chips.
    mesh = Mesh(mesh.devices.swapaxes(0, 1), mesh.axis_names)
    layout = TrainLayout(mesh, smallest=1)
    assert count == 1 or layout.rows(BATCH) in ((0, 1, 4, 5), (2, 3, 6, 7))
    if "WEIGHTS" in os.environ:
        check_loading(layout, os.environ["WEIGHTS"])
    rng = np.random.default_rng(1)
    params = {
        "query": {"kernel": rng.normal(size=(16, 32)).astype("float32") / 4},
        "out": {"kernel": rng.normal(size=(32, 16)).astype("float32") / 6},
    }
    state = layout.init_state(params, OPTIMIZER, jax.random.key(0))
    assert state.params["query"]["kernel"].sharding.spec == PartitionSpec("fsdp", "model")
    state = train(
        state,
        make_train_step(loss_fn, OPTIMIZER, places=layout.state(state)),
        Rows(layout.rows(BATCH)),
        steps=steps,
        out=out,
        resume=bool(resume),
        save_every=10,
        log_every=5,
        layout=layout,
    )
    state = state.replace(key=jax.random.key_data(state.key))
    everywhere = jax.jit(lambda x: x, out_shardings=layout.whole)(state)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(everywhere):
        digest.update(np.asarray(leaf.addressable_data(0)).tobytes())
    params = jax.tree.leaves(everywhere.params)
    total = sum(float(np.abs(x.addressable_data(0)).sum()) for x in params)
    print("state", int(state.step), total, digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
