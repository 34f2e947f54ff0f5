"""Compile attention and its gradient for TPUs that are not there: run as a process of its own.

    python -m tests.pallas_kernels.tpu_compile TOPOLOGY CASE...

libtpu lets one process at a time hold its lock, so tests run this under a lock of their own. Every
case prints a line of JSON: its name, seconds, and bytes per device.
"""

import json
import os
import sys
import time

os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
# Another process may hold libtpu's lock; nothing here touches a chip.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import pallas_kernels as pk

TARGET = 32_760
# Name -> (queries, keys, head size, dtype, partial tiles' fill, layers).
CASES = {
    "bits_45240": (45_240, 45_240, 128, "bfloat16", "bits", 1),
    "every_bit_45240": (45_240, 45_240, 128, "bfloat16", "every_bit", 2),
    "bits_798720": (TARGET, 798_720, 128, "bfloat16", "bits", 1),
    "geometry_99840": (TARGET, 99_840, 128, "bfloat16", "geometry", 1),
    "geometry_798720": (TARGET, 798_720, 64, "bfloat16", "geometry", 1),
    "soft_99840": (TARGET, 99_840, 64, "float32", "soft", 1),
}
TILE_Q, TILE_K = 512, 128


def _geometry(tokens: int, views: int) -> pk.TokenGeometry:
    position = jax.ShapeDtypeStruct((1, tokens, 3), jnp.float32)
    return jax.eval_shape(lambda x: pk.make_token_geometry(x, radius=0.1, views=views), position)


def mask_shapes(q_len: int, k_len: int, kind: str, heads: int) -> pk.BlockMask:
    """Shapes of a correspondence mask between a target and a bank."""
    query, key = _geometry(q_len, 64), _geometry(k_len, 21)
    sizes = {"tile_q": TILE_Q, "tile_k": TILE_K}
    if kind == "soft":
        strength = jax.ShapeDtypeStruct((1, heads), jnp.float32)
        return jax.eval_shape(
            lambda q, k, s: pk.from_geometry(q, k, strength=s, **sizes), query, key, strength
        )
    mask = jax.eval_shape(lambda q, k: pk.from_geometry(q, k, **sizes), query, key)
    if kind == "geometry":
        return mask
    capacity = 4000 if kind == "bits" else None
    return jax.eval_shape(lambda m: pk.pack_partial_tiles(m, capacity=capacity), mask)


def compile_case(topology: str, case: str, *, heads_per_device: int = 4) -> dict:
    """Compile forward and gradient, heads sharded over 8 chips by shard_map."""
    q_len, k_len, d, dtype, kind, layers = CASES[case]
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    count = min(8, len(devices))
    mesh = Mesh(np.array(devices[:count]), ("heads",))
    heads = heads_per_device * count
    mask = mask_shapes(q_len, k_len, kind, heads)
    whole, split = P(), P(None, None, "heads")

    def specs(x):
        return P(None, "heads") if x.shape == (1, heads) else whole

    def attend(q, k, v, mask):
        out, lse = pk.block_sparse_attention(
            q, k, v, mask, implementation="pallas_tpu", return_lse=True
        )
        return out, lse

    def loss(q, k, v, mask):
        sharded = jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=(split, split, split, jax.tree.map(specs, mask)),
            out_specs=(split, split),
        )

        def layer(x, _):
            out, lse = sharded(x, k, v, mask)
            return x + out, jnp.sum(lse)

        if layers == 1:
            out, lse = layer(q, None)
        else:
            # As a model's layers run: the mask is what the loop holds.
            out, lse = jax.lax.scan(jax.checkpoint(layer), q, length=layers)
        return jnp.sum(out.astype(jnp.float32)) + jnp.sum(lse)

    def put(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    q, k = (
        put(jax.ShapeDtypeStruct((1, t, heads, d), jnp.dtype(dtype)), split) for t in (q_len, k_len)
    )
    mask = jax.tree.map(lambda x: put(x, specs(x)), mask)
    start = time.perf_counter()
    with jax.sharding.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        lowered = step.lower(q, k, k, mask)
        memory = lowered.compile().memory_analysis()
    return {
        "case": case,
        "layers": layers,
        "seconds": round(time.perf_counter() - start, 1),
        "temporary_bytes": memory.temp_size_in_bytes,
        "kernels": lowered.as_text().count("@tpu_custom_call"),
    }


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(json.dumps(compile_case(sys.argv[1], name)), flush=True)
