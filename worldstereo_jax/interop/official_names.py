"""One rule table: official parameter name <-> path in our parameter tree, both ways.

A rule pairs two patterns and says how the array is laid out on our side. `{i}` is a layer's
index; in our paths it stands behind a run of layers ("controlled" or "blocks"), which the config
decides (`layer_stacks.runs`).
"""

import re
import typing
from collections.abc import Callable, Collection, Sequence

import numpy as np

ndarray = np.ndarray


class Layout(typing.NamedTuple):
    """A change of array layout, its inverse, and what it does to a shape."""

    to_ours: Callable[[ndarray], ndarray]
    to_official: Callable[[ndarray], ndarray]
    official_shape: Callable[[tuple[int, ...]], tuple[int, ...]]


SAME = Layout(lambda x: x, lambda x: x, lambda s: s)
MATRIX = Layout(lambda x: x.T, lambda x: x.T, lambda s: s[::-1])
"""PyTorch keeps a linear map as [out, in], Flax as [in, out]."""
CONVOLUTION = Layout(
    lambda x: x.transpose(2, 3, 4, 1, 0),
    lambda x: x.transpose(4, 3, 0, 1, 2),
    lambda s: (s[4], s[3], s[0], s[1], s[2]),
)
"""[out, in, f, h, w] there, [f, h, w, in, out] here."""
LEADING_ONE = Layout(lambda x: x[0], lambda x: x[None], lambda s: (1, *s))
"""Modulation tables have a leading axis of 1 there."""


class Rule(typing.NamedTuple):
    """Official name pattern, our path pattern, and the layout between them."""

    official: str
    ours: str
    layout: Layout


def layer(official: str, ours: str, layout: Layout = MATRIX) -> tuple[Rule, ...]:
    """Rules of a linear map or a convolution: its weights, laid out so, and its bias."""
    return (
        Rule(f"{official}.weight", f"{ours}/kernel", layout),
        Rule(f"{official}.bias", f"{ours}/bias", SAME),
    )


def norm(official: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a normalisation that scales and shifts."""
    return (
        Rule(f"{official}.weight", f"{ours}/scale", SAME),
        Rule(f"{official}.bias", f"{ours}/bias", SAME),
    )


def _scale(official: str, ours: str) -> tuple[Rule, ...]:
    return (Rule(f"{official}.weight", f"{ours}/scale", SAME),)


def _attention(official: str, ours: str) -> tuple[Rule, ...]:
    return (
        *layer(f"{official}.to_q", f"{ours}/query"),
        *layer(f"{official}.to_k", f"{ours}/key"),
        *layer(f"{official}.to_v", f"{ours}/value"),
        *layer(f"{official}.to_out.0", f"{ours}/out"),
        *_scale(f"{official}.norm_q", f"{ours}/query_norm"),
        *_scale(f"{official}.norm_k", f"{ours}/key_norm"),
    )


def _control_block(official: str, ours: str) -> tuple[Rule, ...]:
    return (
        *layer(f"{official}norm1.linear", f"{ours}attention_norm/modulation"),
        *norm(f"{official}norm1.norm", f"{ours}attention_norm/norm"),
        *_attention(f"{official}self_attn", f"{ours}attention"),
        *layer(f"{official}norm2.linear", f"{ours}ffn_norm/modulation"),
        *norm(f"{official}norm2.norm", f"{ours}ffn_norm/norm"),
        *layer(f"{official}ffn.0", f"{ours}ffn/up"),
        *layer(f"{official}ffn.2", f"{ours}ffn/down"),
    )


def _mask_embedding(official: str, ours: str) -> tuple[Rule, ...]:
    return (
        *layer(f"{official}mask_proj.0", f"{ours}project", CONVOLUTION),
        *norm(f"{official}mask_proj.1", f"{ours}norm"),
        *layer(f"{official}mask_zero_proj", f"{ours}patch_embedding", CONVOLUTION),
    )


_BLOCK = "blocks.{i}"
_OURS = "{i}/backbone"
_EMBEDDER = "condition_embedder"

BACKBONE_RULES: tuple[Rule, ...] = (
    *layer("patch_embedding", "patch_embedding", CONVOLUTION),
    *layer(f"{_EMBEDDER}.time_embedder.linear_1", "time_embedding/linear_1"),
    *layer(f"{_EMBEDDER}.time_embedder.linear_2", "time_embedding/linear_2"),
    *layer(f"{_EMBEDDER}.time_proj", "time_embedding/project"),
    *layer(f"{_EMBEDDER}.text_embedder.linear_1", "text_embedding/linear_1"),
    *layer(f"{_EMBEDDER}.text_embedder.linear_2", "text_embedding/linear_2"),
    *norm(f"{_EMBEDDER}.image_embedder.norm1", "image_embedding/norm_in"),
    *layer(f"{_EMBEDDER}.image_embedder.ff.net.0.proj", "image_embedding/linear_1"),
    *layer(f"{_EMBEDDER}.image_embedder.ff.net.2", "image_embedding/linear_2"),
    *norm(f"{_EMBEDDER}.image_embedder.norm2", "image_embedding/norm_out"),
    Rule(f"{_BLOCK}.scale_shift_table", f"{_OURS}/modulation", LEADING_ONE),
    *_attention(f"{_BLOCK}.attn1", f"{_OURS}/self_attention"),
    *norm(f"{_BLOCK}.norm2", f"{_OURS}/cross_norm"),
    *_attention(f"{_BLOCK}.attn2", f"{_OURS}/cross_attention"),
    *layer(f"{_BLOCK}.attn2.add_k_proj", f"{_OURS}/cross_attention/image_key"),
    *layer(f"{_BLOCK}.attn2.add_v_proj", f"{_OURS}/cross_attention/image_value"),
    *_scale(f"{_BLOCK}.attn2.norm_added_k", f"{_OURS}/cross_attention/image_key_norm"),
    *layer(f"{_BLOCK}.ffn.net.0.proj", f"{_OURS}/ffn/up"),
    *layer(f"{_BLOCK}.ffn.net.2", f"{_OURS}/ffn/down"),
    Rule("scale_shift_table", "head/modulation", LEADING_ONE),
    *layer("proj_out", "head/linear"),
)
"""Wan 2.1, text and image conditioned."""

CONTROL_RULES: tuple[Rule, ...] = (
    *layer("controlnet.controlnet_patch_embedding", "control/patch_embedding", CONVOLUTION),
    *_mask_embedding("controlnet.controlnet_mask_embedding.", "control/mask_embedding/"),
    *layer("controlnet.proj_in", "control/project"),
    *_control_block("controlnet.controlnet_blocks.{i}.", "{i}/control/"),
    *layer("controlnet.proj_out.{i}", "{i}/residual"),
)
"""The control branch of both official stages."""

CAMERA_RULES: tuple[Rule, ...] = (
    *layer("camera_embedding.0", "camera_embedding/linear_1"),
    *layer("camera_embedding.2", "camera_embedding/linear_2"),
    *layer("camera_embedding.4", "camera_embedding/linear_3"),
)
"""The camera vector of the memory stage."""

WARPED_RULES: tuple[Rule, ...] = (
    Rule("warped_entry.weight", "warped_entry/project/kernel", MATRIX),
    *layer(f"{_BLOCK}.warped_attn.to_q", f"{_OURS}/warped_attention/query"),
    *_scale(f"{_BLOCK}.warped_attn.norm_q", f"{_OURS}/warped_attention/query_norm"),
    Rule(f"{_BLOCK}.warped_attn.to_out.weight", f"{_OURS}/warped_attention/out/kernel", MATRIX),
)
"""This project's slots for warped memory in the official style; no official file has them."""

ENTRY_RULES: tuple[Rule, ...] = (
    *layer(f"{_BLOCK}.entry_attn.to_q", f"{_OURS}/entry_attention/query"),
    *layer(f"{_BLOCK}.entry_attn.to_k", f"{_OURS}/entry_attention/key"),
    *layer(f"{_BLOCK}.entry_attn.to_v", f"{_OURS}/entry_attention/value"),
    *_scale(f"{_BLOCK}.entry_attn.norm_q", f"{_OURS}/entry_attention/query_norm"),
    *_scale(f"{_BLOCK}.entry_attn.norm_k", f"{_OURS}/entry_attention/key_norm"),
    Rule(f"{_BLOCK}.entry_attn.to_out.weight", f"{_OURS}/entry_attention/out/kernel", MATRIX),
)
"""This project's keys and values of entries in the official style; no official file has them."""

MODEL_RULES: tuple[Rule, ...] = (
    *BACKBONE_RULES,
    *CONTROL_RULES,
    *CAMERA_RULES,
    *WARPED_RULES,
    *ENTRY_RULES,
)
"""Everything in `WorldStereo`."""

MASK_EMBEDDING_RULES = _mask_embedding("", "")
"""`MaskEmbedding` by itself."""

STEREO_BLOCK_RULES = _control_block("", "block/")
"""`StereoBlock` by itself."""

IGNORED = (
    r"(controlnet\.)?ref_index_embedding(\.weight)?",
    r"blocks\.\d+\.attn2\.norm_added_q\.weight",
    # A second name of the text encoder's shared.weight, in files of some versions.
    r"encoder\.embed_tokens\.weight",
    r"vision_model\.embeddings\.position_ids",
    # Of masked training only.
    r"(backbone\.)?embeddings\.mask_token",
    # The coarsest map has no finer one to add.
    r"neck\.fusion_stage\.layers\.0\.residual_layer1\.convolution[12]\.(weight|bias)",
)
"""Official tensors that no output depends on: never used by the official code either."""


def is_ignored(name: str) -> bool:
    """Whether an official tensor is known to be without use."""
    return any(re.fullmatch(pattern, name) for pattern in IGNORED)


class Place(typing.NamedTuple):
    """Where an official tensor lives on our side.

    Attributes:
        path: path of the array in our tree, names joined by "/".
        index: its row when the array holds a stack of layers, else None.
        layout: how the two layouts differ.
    """

    path: str
    index: int | None
    layout: Layout


def places(
    paths: Collection[str],
    rules: tuple[Rule, ...],
    layer_paths: Sequence[tuple[str, int | None]] = (),
) -> dict[str, Place]:
    """Every official name that belongs to a tree, with its place there.

    Args:
        paths: the paths of our tree, names joined by "/".
        rules: the rule table.
        layer_paths: for each layer what `{i}` stands for in our paths, and its row there.

    Raises:
        KeyError: when a path of the tree has no rule.
    """
    found: dict[str, Place] = {}
    for official, ours, layout in rules:
        layers = enumerate(layer_paths) if "{i}" in official else [(None, ("", None))]
        for layer, (prefix, index) in layers:
            path = ours.replace("{i}", prefix)
            if path in paths:
                found[official.replace("{i}", str(layer))] = Place(path, index, layout)
    without_rule = set(paths) - {place.path for place in found.values()}
    if without_rule:
        raise KeyError(f"no rule for {sorted(without_rule)}")
    return found
