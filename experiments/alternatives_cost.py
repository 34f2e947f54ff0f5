"""What attention costs under each pattern, on the masks of the scenes of `alternatives`."""

import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import block_sparse_attention
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.evaluation.attention_patterns import EVERY, PATTERNS, sides_of
from worldstereo_jax.evaluation.report import Table
from worldstereo_jax.models.attention import dense_attention
from worldstereo_jax.sampling.conditions import Conditions
from worldstereo_jax.sampling.denoise import model_inputs

TILES = (128, 32)


def seconds(function, *args) -> float:
    """Processor seconds of a call, least of five."""
    jax.block_until_ready(function(*args))
    found = []
    for _ in range(5):
        start = time.process_time()
        jax.block_until_ready(function(*args))
        found.append(time.process_time() - start)
    return min(found)


def attention_table(config: ModelConfig, told: Sequence[Conditions]) -> Table:
    """Pairs, active tiles, operations and time of one layer, means over the revisiting clips."""
    batches = [jax.tree.map(lambda leaf: leaf[None], conditions) for conditions in told]
    heads, size = config.num_heads, config.head_size

    @functools.partial(jax.jit, static_argnames=("name", "tile"))
    def build(conditions: Conditions, name: str, tile: int):
        x = jnp.zeros(conditions.render_latent.shape)
        order = model_inputs(config, x, jnp.ones(1), conditions).kwargs["token_order"]
        return PATTERNS[name](sides_of(conditions, order), tile)

    tokens = batches[0].reference_geometry.length + batches[0].target_geometry.length
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, tokens, heads, size))
    attend = jax.jit(block_sparse_attention)
    rows = []
    for name in PATTERNS:
        masks = {tile: [build(batch, name, tile) for batch in batches] for tile in TILES}
        pairs = np.mean([np.asarray(mask.dense()).mean() for mask in masks[TILES[0]]])
        cells = [f"{100 * pairs:.1f} %"]
        for tile in TILES:
            active = np.mean([float(mask.density().mean()) for mask in masks[tile]])
            # Two products of a pair of tokens, a multiplication and an addition per channel.
            whole = masks[tile][0].q_tiles * masks[tile][0].k_tiles * tile * tile
            operations = 4 * whole * active * config.width
            cells += [f"{100 * active:.1f} %", f"{operations / 1e6:.0f}"]
        if name == EVERY:
            took = seconds(jax.jit(dense_attention), q, k, v)
        else:
            took = seconds(attend, q, k, v, masks[TILES[0]][0])
        built = seconds(functools.partial(build, name=name, tile=TILES[0]), batches[0])
        rows.append((name, *cells, f"{1e3 * took:.1f}", f"{1e3 * built:.1f}"))
    columns = ["pattern", "pairs"]
    for tile in TILES:
        columns += [f"active tiles of {tile}", f"million operations, tiles of {tile}"]
    caption = (
        f"One layer's joint attention over {tokens} tokens (references and target), on the clips "
        "that revisit. Every reference runs as the dense product, the others tile by tile in tiles "
        "of 128 (portable form; times are processor ms on this machine, the mask's order included "
        "in building it, once per clip for all layers). At this size the target, which sees itself "
        "densely, is most of the sequence; at 480 x 832 and many views see *Tile density by the "
        "order of tokens* and *Attention by density*."
    )
    return Table((*columns, "attention ms", "mask ms"), rows, caption)
