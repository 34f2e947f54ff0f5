import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.models.small_model import SMALL, inputs, random_params
from worldstereo_jax.models.transformer import Stream, laid_out
from worldstereo_jax.models.worldstereo import WorldStereo

MESH = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "model"))
STREAM = NamedSharding(MESH, PartitionSpec(("data", "fsdp"), "model", None))


def test_streams_are_laid_out_where_their_sizes_divide():
    stream = Stream(tokens=jnp.ones((4, 6, 8)), control=jnp.ones((4, 7, 8)))
    found = jax.jit(lambda x: laid_out(x, STREAM))(stream)
    assert found.control is not None
    assert {shard.data.shape for shard in found.tokens.addressable_shards} == {(1, 3, 8)}
    assert {shard.data.shape for shard in found.control.addressable_shards} == {(1, 7, 8)}
    assert laid_out(stream, None) is stream


def test_layers_hand_their_streams_on_as_laid_out():
    given, params = inputs(), random_params(SMALL)

    def exchanges(sharding):
        model = WorldStereo(SMALL, stream_sharding=sharding)
        program = jax.make_jaxpr(lambda params, given: model.apply({"params": params}, **given))
        return str(program(params, given)).count("sharding_constraint")

    assert exchanges(None) == 0
    # Before the first layer, and behind every one of either stack: target and control.
    assert exchanges(STREAM) == 2 + 2 + 1
