"""The backbone's blocks, alone and in lockstep with a control block, stacked by scan.

The stream is [references ; target]: both run through the same weights and the same modulation.
Cross-attention, control residuals, warped memory and entries reach the target's tokens only.
"""

import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import AttentionSharding, BlockMask
from worldstereo_jax.array_types import Array, Float, Int
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.models.attention import (
    CrossAttention,
    EntryAttention,
    SelfAttention,
    WarpedAttention,
)
from worldstereo_jax.models.control import ControlBlock
from worldstereo_jax.models.layers import ZERO_INIT, FeedForward, LayerNorm, add_gated, linear
from worldstereo_jax.models.placement import axis_size
from worldstereo_jax.models.rope import Rotary

CONTROLLED = "controlled"
"""Parameter group of the backbone layers that run in lockstep with a control block."""
PLAIN = "blocks"
"""Parameter group of the remaining backbone layers."""


@struct.dataclass
@typing.no_type_check
class Stream:
    """What the layers hand on.

    Attributes:
        tokens: [references ; target], [b, s + t, c].
        control: tokens of the control branch [b, t, cc], None when it is not used.
    """

    tokens: jax.Array
    control: jax.Array | None


@struct.dataclass
@typing.no_type_check
class EntryKeys:
    """The memory's entries as layers read them.

    Attributes:
        features: of each entry [b, e, ce].
        mask: block mask of the target's tokens by the entries.
        rotary: places of the target's tokens.
        entry_rotary: places of the entries, on the same axes.
    """

    features: jax.Array
    mask: BlockMask
    rotary: Rotary
    entry_rotary: Rotary


@struct.dataclass
@typing.no_type_check
class LayerInputs:
    """What every layer reads; None where the call has none.

    Attributes:
        temb: time embedding [b, c], float32.
        modulation: its 6-way projection [b, 6, c], float32.
        text: embedded text [b, l, c].
        image: embedded image tokens [b, m, c].
        rotary: positions of [references ; target].
        control_rotary: positions of the target at the control branch's head size.
        references: reference tokens as they entered [b, s, c].
        key_valid: bool [b, s + t], False for tokens of references that are not there.
        masks: block masks over [references ; target] by pattern name.
        warped_features: memory candidates per target token [b, t, k, cw].
        warped_log_weight: [b, t, k], -inf where a candidate does not exist.
        control_scale: factor on the control residuals [b].
        sharding: static; how attention is split over the chips of a mesh, None for one chip.
        stream_sharding: static; how the streams lie on a mesh between layers, None to leave it to
            XLA.
        entries: surface entries with keys and values of their own.
    """

    temb: jax.Array
    modulation: jax.Array
    text: jax.Array
    image: jax.Array | None
    rotary: Rotary
    control_rotary: Rotary | None
    references: jax.Array | None
    key_valid: jax.Array | None
    masks: Mapping[str, BlockMask] | None
    warped_features: jax.Array | None
    warped_log_weight: jax.Array | None
    control_scale: jax.Array | None
    sharding: AttentionSharding | None = struct.field(pytree_node=False, default=None)
    stream_sharding: NamedSharding | None = struct.field(pytree_node=False, default=None)
    entries: EntryKeys | None = None


def laid_out(stream: Stream, sharding: NamedSharding | None) -> Stream:
    """The streams as they lie on a mesh between layers, which is what a backward pass keeps.

    `sharding` is of arrays [b, n, c]; axes that do not divide a stream leave it whole.
    """
    if sharding is None:
        return stream

    def lay(x: Array) -> Array:
        spec = (
            axis if size % axis_size(sharding.mesh, axis) == 0 else None
            for size, axis in zip(x.shape, sharding.spec, strict=True)
        )
        split = NamedSharding(sharding.mesh, PartitionSpec(*spec))
        return jax.lax.with_sharding_constraint(x, split)

    return jax.tree.map(lay, stream)


def add_to_target(
    tokens: Float[Array, "b n c"], change: Float[Array, "b t_or_1 c"], references: int
) -> Float[Array, "b n c"]:
    """Add `change` to the tokens after the first `references`; one token serves all of them."""
    if references == 0:
        return (tokens + change).astype(tokens.dtype)
    target = tokens.shape[1] - references
    change = jnp.broadcast_to(change, (tokens.shape[0], target, tokens.shape[2]))
    return (tokens + jnp.pad(change, ((0, 0), (references, 0), (0, 0)))).astype(tokens.dtype)


class BackboneBlock(nn.Module):
    """Modulated self-attention, cross-attention, memory, modulated feed-forward.

    Attributes:
        config: sizes of the model.
        patterns: attention patterns that `pattern` chooses among.
    """

    config: ModelConfig
    patterns: tuple[str, ...]

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        pattern: Int[Array, ""] | None,
        inputs: LayerInputs,
    ) -> Float[Array, "b n c"]:
        """Apply the block to [references ; target]."""
        config, dtype = self.config, self.config.compute_dtype
        width = tokens.shape[-1]
        count = 0 if inputs.references is None else inputs.references.shape[1]
        table = self.param("modulation", nn.initializers.normal(width**-0.5), (6, width))
        modulation = inputs.modulation + table[None].astype(inputs.modulation.dtype)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (
            modulation[:, row : row + 1] for row in range(6)
        )

        normed = (LayerNorm()(tokens) * (1 + scale) + shift).astype(dtype)
        attended = SelfAttention(
            config.num_heads,
            self.patterns,
            config.attention_implementation,
            dtype,
            config.attention_normalisation,
            name="self_attention",
        )(
            normed,
            inputs.rotary,
            pattern=pattern,
            masks=inputs.masks,
            key_valid=inputs.key_valid,
            sharding=inputs.sharding,
        )
        tokens = add_gated(tokens, gate, attended)

        target = LayerNorm(affine=True, name="cross_norm")(tokens[:, count:]).astype(dtype)
        crossed = CrossAttention(
            config.num_heads, config.image_width is not None, dtype, name="cross_attention"
        )(target, inputs.text, inputs.image, sharding=inputs.sharding)
        tokens = add_to_target(tokens, crossed, count)
        if inputs.warped_features is not None and inputs.warped_log_weight is not None:
            warped = WarpedAttention(config.num_heads, dtype, name="warped_attention")(
                normed[:, count:], inputs.warped_features, inputs.warped_log_weight
            )
            tokens = add_to_target(tokens, warped, count)
        if inputs.entries is not None:
            entries = inputs.entries
            found = EntryAttention(
                config.num_heads,
                config.attention_implementation,
                dtype,
                config.attention_normalisation,
                name="entry_attention",
            )(
                normed[:, count:],
                entries.features,
                entries.mask,
                entries.rotary,
                entries.entry_rotary,
                sharding=inputs.sharding,
            )
            tokens = add_to_target(tokens, found, count)

        normed = (LayerNorm()(tokens) * (1 + ffn_scale) + ffn_shift).astype(dtype)
        fed = FeedForward(config.ffn_width, dtype, name="ffn")(normed)
        return add_gated(tokens, ffn_gate, fed)


class Layer(nn.Module):
    """One backbone block and, in the first layers, the control block of the same index.

    Running the two in lockstep means that control residuals are used as they arise and never
    stored for all layers.

    Attributes:
        config: sizes of the model.
        controlled: whether a control block belongs to the layer.
        patterns: attention patterns that `pattern` chooses among.
    """

    config: ModelConfig
    controlled: bool
    patterns: tuple[str, ...]

    @nn.compact
    def __call__(
        self, stream: Stream, pattern: Int[Array, ""] | None, inputs: LayerInputs
    ) -> tuple[Stream, None]:
        """Advance both streams by one layer; the second result is what scan asks for."""
        tokens, control, sizes = stream.tokens, stream.control, self.config.control
        count = 0 if inputs.references is None else inputs.references.shape[1]
        if inputs.references is not None and not self.config.update_ref:
            tokens = jnp.concatenate([inputs.references, tokens[:, count:]], axis=1)
        tokens = BackboneBlock(self.config, self.patterns, name="backbone")(tokens, pattern, inputs)
        rotary = inputs.control_rotary
        if self.controlled and control is not None and sizes is not None and rotary is not None:
            dtype = self.config.compute_dtype
            control = ControlBlock(sizes.num_heads, sizes.ffn_width, dtype, name="control")(
                control, inputs.temb, rotary, inputs.sharding
            )
            residual = linear(self.config.width, dtype=dtype, name="residual", init=ZERO_INIT)(
                control
            )
            if inputs.control_scale is not None:
                residual = residual * inputs.control_scale[:, None, None].astype(dtype)
            tokens = add_to_target(tokens, residual, count)
        return laid_out(Stream(tokens, control), inputs.stream_sharding), None


_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_without_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class LayerStack(nn.Module):
    """A run of equal layers, as one scan over stacked parameters or one after another.

    Scanned, the parameters are those of one layer with a leading axis; else there is one set per
    layer, named by its index in the run.

    Attributes:
        config: sizes of the model.
        controlled: whether control blocks belong to the layers.
        layer_patterns: attention pattern of each layer of the run.
    """

    config: ModelConfig
    controlled: bool
    layer_patterns: tuple[str, ...]

    @nn.compact
    def __call__(self, stream: Stream, inputs: LayerInputs) -> Stream:
        """Run all layers."""
        config = self.config
        layer = Layer
        if config.remat != "none":
            layer = nn.remat(
                Layer, policy=_POLICIES[config.remat], prevent_cse=not config.scan_layers
            )
        if not config.scan_layers:
            for index, name in enumerate(self.layer_patterns):
                stream, _ = layer(config, self.controlled, (name,), name=f"layer_{index}")(
                    stream, None, inputs
                )
            return stream
        patterns = tuple(dict.fromkeys(self.layer_patterns))
        indices = jnp.asarray([patterns.index(name) for name in self.layer_patterns], jnp.int32)
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=len(self.layer_patterns),
        )
        stream, _ = scanned(config, self.controlled, patterns, name="layers")(
            stream, indices, inputs
        )
        return stream
