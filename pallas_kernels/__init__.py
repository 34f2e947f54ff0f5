"""Block-sparse attention in JAX whose mask is data, built from 3D correspondence.

mask = from_geometry(target, references)
out = block_sparse_attention(q, k, v, mask)
"""

from pallas_kernels.api import (
    available_implementations,
    block_sparse_attention,
    explain_choice,
    merge_attention,
)
from pallas_kernels.block_mask import BlockMask
from pallas_kernels.correspondence_mask import (
    concatenate_geometry,
    from_geometry,
    joint_correspondence,
)
from pallas_kernels.dense_tail import attend_with_dense_tail, without_dense_tail
from pallas_kernels.geometry import (
    CorrespondenceRule,
    TokenGeometry,
    ellipse_metric,
    make_token_geometry,
    sphere_metric,
)
from pallas_kernels.key_restriction import restrict_keys
from pallas_kernels.packing import pack_partial_tiles, pack_soft_tiles
from pallas_kernels.patterns import (
    dense_pattern,
    frame_pair,
    frame_pattern,
    from_dense,
    from_tile_lists,
    sliding_window,
)
from pallas_kernels.refinement import coarsen, refine, tile_density
from pallas_kernels.sharding import AttentionSharding, by_samples, sharded_attention
from pallas_kernels.target_device import Target, target_of
from pallas_kernels.tile_sizes import TileSizes, best_tiles
from pallas_kernels.token_order import (
    TokenOrder,
    bounding_box,
    order_geometry,
    order_tokens,
)

__all__ = [
    "AttentionSharding",
    "BlockMask",
    "CorrespondenceRule",
    "Target",
    "TileSizes",
    "TokenGeometry",
    "TokenOrder",
    "attend_with_dense_tail",
    "available_implementations",
    "best_tiles",
    "block_sparse_attention",
    "bounding_box",
    "by_samples",
    "coarsen",
    "concatenate_geometry",
    "dense_pattern",
    "ellipse_metric",
    "explain_choice",
    "frame_pair",
    "frame_pattern",
    "from_dense",
    "from_geometry",
    "from_tile_lists",
    "joint_correspondence",
    "make_token_geometry",
    "merge_attention",
    "order_geometry",
    "order_tokens",
    "pack_partial_tiles",
    "pack_soft_tiles",
    "refine",
    "restrict_keys",
    "sharded_attention",
    "sliding_window",
    "sphere_metric",
    "target_of",
    "tile_density",
    "without_dense_tail",
]
