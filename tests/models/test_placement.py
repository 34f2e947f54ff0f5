import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from worldstereo_jax.models.placement import fully_sharded, tensor_parallel


def test_heads_and_hidden_channels_are_split_for_tensor_parallelism():
    place = tensor_parallel(Mesh(np.array(jax.devices()[:4]), ("model",)), "model")
    block = "blocks/layers/backbone/"
    for path, shape, spec in (
        ("self_attention/query/kernel", (3, 24, 24), (None, None, "model")),
        ("cross_attention/image_value/bias", (3, 24), (None, "model")),
        ("self_attention/out/kernel", (3, 24, 24), (None, "model", None)),
        ("self_attention/out/bias", (3, 24), (None, None)),
        ("self_attention/query_norm/scale", (3, 24), (None, None)),
        ("ffn/up/kernel", (24, 32), (None, "model")),
        ("ffn/down/kernel", (32, 24), ("model", None)),
        ("ffn/up/kernel", (24, 30), (None, None)),
        # Of adapters the factor that touches a split axis, never the rank.
        ("self_attention/query/adapter/a", (3, 24, 4), (None, None, None)),
        ("self_attention/query/adapter/b", (3, 4, 24), (None, None, "model")),
        ("ffn/down/adapter/a", (32, 4), ("model", None)),
        ("ffn/down/adapter/b", (4, 24), (None, None)),
    ):
        assert place(block + path, shape).spec == PartitionSpec(*spec), path


def test_what_tensor_parallelism_leaves_whole_is_split_along_its_widest_axis():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("fsdp", "model"))
    place = fully_sharded(mesh, "fsdp", tensor_parallel(mesh, "model"), smallest=24 * 24)
    block = "blocks/layers/backbone/"
    for path, shape, spec in (
        (block + "self_attention/query/kernel", (3, 24, 24), (None, "fsdp", "model")),
        (block + "self_attention/out/kernel", (3, 24, 24), (None, "model", "fsdp")),
        (block + "self_attention/out/bias", (2, 24), (None, None)),
        (block + "ffn/up/kernel", (4, 25, 30), (None, None, "fsdp")),
        ("time_embedding/first/kernel", (256, 1024), (None, "fsdp")),
        ("odd/kernel", (255, 1023), (None, None)),
    ):
        assert place(path, shape).spec == PartitionSpec(*spec), path
