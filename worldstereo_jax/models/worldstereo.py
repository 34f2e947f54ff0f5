"""The assembled model: video transformer, control branch, references, warped memory, entries.

Memory reaches it as plain arrays: `ControlInput` from the global-geometric memory, `References`,
`WarpedMemory` and `MemoryEntries` with their block masks from the spatial-stereo memory. Each may
be left out of a call, or switched off per sample, with the same parameters.
"""

import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.sharding import NamedSharding

from pallas_kernels import (
    AttentionSharding,
    BlockMask,
    TokenOrder,
    dense_pattern,
    restrict_keys,
)
from worldstereo_jax.array_types import Array, Bool, Float, Key, PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.attention import DENSE, masked_softmax
from worldstereo_jax.models.control import LATENT_STRIDE, ControlEmbedding, ControlInput
from worldstereo_jax.models.embeddings import (
    CameraEmbedding,
    Head,
    ImageEmbedding,
    TextEmbedding,
    TimeEmbedding,
)
from worldstereo_jax.models.layers import ZERO_INIT, PatchEmbedding, linear, patchify, unpatchify
from worldstereo_jax.models.rope import (
    Rotary,
    real_rotary,
    reference_positions,
    rotary_table,
    target_positions,
)
from worldstereo_jax.models.transformer import (
    CONTROLLED,
    PLAIN,
    EntryKeys,
    LayerInputs,
    LayerStack,
    Stream,
    laid_out,
)

__all__ = [
    "ControlInput",
    "MemoryEntries",
    "References",
    "StreamOrder",
    "WarpedMemory",
    "WorldStereo",
    "init_params",
]


@struct.dataclass
@typing.no_type_check
class References:
    """Views of the keyframe bank that the target attends to (row S7).

    Attributes:
        latent: latent | ones(4) | latent of each view [b, r, lh, lw, 36].
        index: int32 [b, r], target frame that first chose the view, minus one; the view takes the
            rotary positions of the right half of frame index + 1 in a grid twice as wide.
        camera: unit quaternion wxyz and translation of each view's unified-normalised w2c
            [b, r, 7].
        valid: bool [b, r]; a view with False gets no weight and influences nothing. None for all.
        place: where the surface behind each token is [b, r * t, 3], in tokens, on any three axes,
            for models whose `config.reference_positions` is "surface"; they do not read `index`.
        target_place: where the target's tokens are on these axes [b, t, 3], in raster order.
    """

    latent: jax.Array
    index: jax.Array
    camera: jax.Array
    valid: jax.Array | None = None
    place: jax.Array | None = None
    target_place: jax.Array | None = None


@struct.dataclass
@typing.no_type_check
class WarpedMemory:
    """Memory features projected into the target views (row S18).

    Attributes:
        features: k candidates per latent pixel [b, f, lh, lw, k, cw]; not read at holes.
        log_weight: confidence of each candidate as a log [b, f, lh, lw, k]; -inf at holes.
    """

    features: jax.Array
    log_weight: jax.Array


@struct.dataclass
@typing.no_type_check
class MemoryEntries:
    """Surface entries of the memory, keys and values that belong to no view (row S28).

    Attributes:
        features: what each entry carries [b, e, ce].
        place: where each entry is [b, e, 3], in tokens, on any three axes.
        target_place: where the target's tokens are on these axes [b, t, 3], in raster order.
        valid: bool [b, e]; an entry with False gets no weight and influences nothing.
    """

    features: jax.Array
    place: jax.Array
    target_place: jax.Array
    valid: jax.Array


@struct.dataclass
@typing.no_type_check
class StreamOrder:
    """The orders in which tokens run through the layers; None keeps raster order.

    Applied once at the entrance to tokens, rotary positions, control tokens and warped memory,
    and undone at the exit. A block mask is built for the ordered tokens.

    Attributes:
        target: order of the target's t tokens.
        references: order of the s tokens of all references, which stand one after another.
    """

    target: TokenOrder | None = None
    references: TokenOrder | None = None


class WorldStereo(nn.Module):
    """The video transformer with its two memories' entrances.

    Equal to the official camera-control and memory models for their parameters (no block mask,
    no warped memory, no entries); with a geometric block mask, warped memory and entries it is this
    project's own.

    Attributes:
        config: sizes and choices.
        sharding: how attention is split over the chips of a mesh, which a kernel must be told and
            XLA's own operations need not; None for one chip.
        stream_sharding: how tokens [b, n, c] lie on a mesh between layers, for training: what the
            backward pass keeps is split so. None leaves it to XLA.
    """

    config: ModelConfig
    sharding: AttentionSharding | None = None
    stream_sharding: NamedSharding | None = None

    @nn.compact
    def __call__(
        self,
        latent: Float[Array, "b f lh lw cin"],
        timestep: Float[Array, " b"],
        text: Float[Array, "b l ct"],
        image_tokens: Float[Array, "b m ci"] | None = None,
        *,
        control: ControlInput | None = None,
        references: References | None = None,
        camera: Float[Array, "b f 7"] | None = None,
        block_mask: BlockMask | Mapping[str, BlockMask] | None = None,
        token_order: StreamOrder | None = None,
        warped: WarpedMemory | None = None,
        entries: MemoryEntries | None = None,
        entry_mask: BlockMask | None = None,
    ) -> Float[Array, "b f lh lw cout"]:
        """Predict the velocity of a clip's latent.

        Args:
            latent: 16 noisy latent | 4 mask | 16 condition latent (36 channels for the models
                with an image condition).
            timestep: 0 .. 1000.
            text: text encoder's output.
            image_tokens: image encoder's output, for models with `config.image_width`.
            control: the global memory's guidance.
            references: views to attend to.
            camera: quaternion wxyz and translation of each target frame's unified-normalised w2c.
            block_mask: over [references ; target] in their order, further restricted to the valid
                references. None makes every layer dense,
                as in the official model; one mask serves all layers whose pattern is not
                "dense"; a mapping gives each pattern name its own (row S20).
            token_order: order in which tokens run through the layers.
            warped: memory features on the target's grid, for models with `config.warped_width`.
            entries: surface entries, in any order, for models with `config.entry_width`.
            entry_mask: over the target's tokens in their order by the entries in theirs, further
                restricted to the valid entries. None lets every token see all of them.

        Returns:
            The predicted latent, float32.

        Raises:
            InputError: when sizes do not fit, or an input is given that the config has no
                parameters for.
        """
        config, dtype = self.config, self.config.compute_dtype
        _check_inputs(config, latent, control, references, camera, image_tokens, warped, entries)
        b, frames, lh, lw, _ = latent.shape
        rows, columns = lh // config.patch_size[1], lw // config.patch_size[2]
        grid = (frames // config.patch_size[0], rows, columns)
        order = token_order if token_order is not None else StreamOrder()

        patch_embedding = PatchEmbedding(
            config.width, config.patch_size, dtype, name="patch_embedding"
        )
        camera_embedding = None
        if config.camera_width is not None:
            camera_embedding = CameraEmbedding(config.width, name="camera_embedding")

        def embed(latent: Array, camera: Array | None) -> Array:
            tokens = patch_embedding(latent)
            if camera_embedding is not None and camera is not None:
                tokens = tokens + camera_embedding(camera).astype(dtype)[:, :, None, None, :]
            return tokens.reshape(b, -1, config.width)

        target = embed(latent, camera)
        features = log_weight = None
        if warped is not None:
            features, log_weight = _candidates_per_token(warped, config.patch_size)
            target = target + _warped_entry(config, warped).reshape(target.shape)
        target_at = _permute(
            jnp.broadcast_to(target_positions(*grid), (b, target.shape[1], 3))
            if order.target is not None
            else target_positions(*grid),
            order.target,
        )
        target = _permute(target, order.target)

        reference_tokens = key_valid = None
        tokens, rotary = target, rotary_table(target_at, config.head_size)
        if references is not None:
            reference_tokens = _permute(
                embed(references.latent, references.camera), order.references
            )
            rotary = _joint_rotary(config, references, order, rotary, (rows, columns))
            tokens = jnp.concatenate([reference_tokens, target], axis=1)
            if references.valid is not None:
                valid = jnp.repeat(references.valid, rows * columns, axis=1)
                valid = _permute(valid, order.references)
                key_valid = jnp.pad(valid, ((0, 0), (0, target.shape[1])), constant_values=True)

        temb, modulation = TimeEmbedding(config.width, config.freq_dim, name="time_embedding")(
            timestep
        )
        text = TextEmbedding(config.width, dtype, name="text_embedding")(text)
        image = None
        if image_tokens is not None:
            image = ImageEmbedding(config.width, dtype, name="image_embedding")(image_tokens)

        control_tokens = control_rotary = control_scale = None
        if control is not None and config.control is not None:
            control_tokens = _permute(
                ControlEmbedding(config.control, config.patch_size, dtype, name="control")(
                    latent, control
                ),
                order.target,
            )
            control_rotary = rotary_table(
                target_at, config.control.width // config.control.num_heads
            )
            control_scale = control.enabled

        inputs = LayerInputs(
            temb=temb,
            modulation=modulation,
            text=text,
            image=image,
            rotary=rotary,
            control_rotary=control_rotary,
            references=reference_tokens,
            key_valid=key_valid,
            masks=_masks_by_name(block_mask, config.layer_patterns, key_valid),
            warped_features=None if features is None else _permute(features, order.target),
            warped_log_weight=None if log_weight is None else _permute(log_weight, order.target),
            control_scale=control_scale,
            sharding=self.sharding,
            stream_sharding=self.stream_sharding,
            entries=None
            if entries is None
            else _entry_keys(config, entries, entry_mask, order.target),
        )
        stream = laid_out(Stream(tokens, control_tokens), self.stream_sharding)
        split = config.controlled_layers
        if split > 0:
            stream = LayerStack(config, True, config.layer_patterns[:split], name=CONTROLLED)(
                stream, inputs
            )
        if split < config.num_layers:
            stream = LayerStack(config, False, config.layer_patterns[split:], name=PLAIN)(
                Stream(stream.tokens, None), inputs
            )
        target = stream.tokens[:, tokens.shape[1] - target.shape[1] :]
        out = Head(config.out_channels, config.patch_size, dtype, name="head")(target, temb)
        if order.target is not None:
            out = order.target.undo(out)
        return unpatchify(out.reshape(b, *grid, -1), config.patch_size).astype(jnp.float32)


def init_params(config: ModelConfig, key: Key[Array, ""]) -> PyTree:
    """Random parameters of `WorldStereo(config)`, made with the smallest inputs that reach all.

    Args:
        config: sizes and choices.
        key: random key.

    Returns:
        The parameter tree, float32.
    """
    return jax.jit(lambda key: WorldStereo(config).init(key, **smallest_inputs(config)))(key)[
        "params"
    ]


def smallest_inputs(config: ModelConfig) -> dict[str, PyTree]:
    """Zeros of the smallest shapes that reach every parameter of `WorldStereo(config)`."""
    f, lh, lw = config.patch_size
    inputs: dict[str, PyTree] = {
        "latent": jnp.zeros((1, f, lh, lw, config.in_channels), jnp.float32),
        "timestep": jnp.zeros((1,), jnp.float32),
        "text": jnp.zeros((1, 1, config.text_dim), jnp.float32),
    }
    if config.image_width is not None:
        inputs["image_tokens"] = jnp.zeros((1, 1, config.image_width), jnp.float32)
    if config.camera_width is not None:
        inputs["camera"] = jnp.zeros((1, f, config.camera_width), jnp.float32)
    if config.control is not None:
        rays = config.control.pixel_channels - 1
        pixels = (
            (f - 1) * config.control.mask_downsample + 1,
            lh * LATENT_STRIDE,
            lw * LATENT_STRIDE,
        )
        inputs["control"] = ControlInput(
            render_latent=jnp.zeros(
                (1, f, lh, lw, config.control.latent_channels - 20), jnp.float32
            ),
            render_mask=jnp.zeros((1, *pixels, 1), jnp.float32),
            plucker=jnp.zeros((1, *pixels, rays), jnp.float32),
        )
    if config.warped_width > 0:
        inputs["warped"] = WarpedMemory(
            features=jnp.zeros((1, f, lh, lw, 1, config.warped_width), jnp.float32),
            log_weight=jnp.zeros((1, f, lh, lw, 1), jnp.float32),
        )
    if config.entry_width > 0:
        inputs["entries"] = MemoryEntries(
            features=jnp.zeros((1, 1, config.entry_width), jnp.float32),
            place=jnp.zeros((1, 1, 3), jnp.float32),
            target_place=jnp.zeros((1, 1, 3), jnp.float32),
            valid=jnp.ones((1, 1), bool),
        )
    return inputs


class WarpedEntry(nn.Module):
    """Warped features added to the target's tokens at the entrance (row S18).

    A zero-initialised linear map without bias of [features | covered] of a token's latent pixels:
    a token of holes alone gets exactly 0.

    Attributes:
        config: sizes of the model.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, features: Float[Array, "b f lh lw cw"], covered: Float[Array, "b f lh lw"]
    ) -> Float[Array, "b f th tw c"]:
        """Project the mean of each latent pixel's candidates, 0 at holes."""
        x = jnp.concatenate([features, covered[..., None]], axis=-1)
        return linear(
            self.config.width,
            dtype=self.config.compute_dtype,
            use_bias=False,
            init=ZERO_INIT,
            name="project",
        )(patchify(x, self.config.patch_size))


def _warped_entry(config: ModelConfig, warped: WarpedMemory) -> Array:
    exists = warped.log_weight > -jnp.inf
    weights = masked_softmax(jnp.where(exists, warped.log_weight, 0.0), exists)
    features = jnp.where(exists[..., None], warped.features, 0.0)
    mean = (weights[..., None] * features).sum(-2)
    covered = exists.any(-1).astype(mean.dtype)
    return WarpedEntry(config, name="warped_entry")(mean, covered)


def _candidates_per_token(
    warped: WarpedMemory, patch: tuple[int, int, int]
) -> tuple[Float[Array, "b t k cw"], Float[Array, "b t k"]]:
    """All candidates of a token's latent pixels, marked with the pixel they belong to.

    One channel per pixel of the patch is appended, 1 for the candidate's own, so that queries can
    tell the four corners of a token apart.
    """
    *lead, count, width = warped.features.shape
    pixels = patch[0] * patch[1] * patch[2]
    tokens = (lead[0], -1, pixels, count)
    features = patchify(warped.features.reshape(*lead, count * width), patch)
    features = features.reshape(*tokens, width)
    log_weight = patchify(warped.log_weight, patch).reshape(*tokens)
    corner = jnp.eye(pixels, dtype=features.dtype)[None, None, :, None, :]
    corner = jnp.broadcast_to(corner, (*features.shape[:-1], pixels))
    features = jnp.concatenate([features, corner], axis=-1)
    shape = (*features.shape[:2], pixels * count)
    return features.reshape(*shape, width + pixels), log_weight.reshape(shape)


def _entry_keys(
    config: ModelConfig,
    entries: MemoryEntries,
    mask: BlockMask | None,
    order: TokenOrder | None,
) -> EntryKeys:
    """The entries with their mask restricted to those that are there, features of others as 0."""
    target_place = _permute(entries.target_place, order)
    if mask is None:
        mask = dense_pattern(target_place.shape[1], entries.valid.shape[1])
    return EntryKeys(
        # What is not there may be anything, and 0 times NaN would be NaN.
        features=jnp.where(entries.valid[..., None], entries.features, 0.0),
        mask=restrict_keys(mask, entries.valid),
        rotary=real_rotary(target_place, config.head_size),
        entry_rotary=real_rotary(
            jnp.where(entries.valid[..., None], entries.place, 0.0), config.head_size
        ),
    )


def _permute(x: Array, order: TokenOrder | None) -> Array:
    """Bring tokens, axis 1, into an order; None leaves them."""
    return x if order is None else order.apply(x)


def _joint_rotary(
    config: ModelConfig,
    references: References,
    order: StreamOrder,
    target: Rotary,
    size: tuple[int, int],
) -> Rotary:
    """Of [references ; target] in their orders; `target` is by the places in the target's grid."""
    place, target_place = references.place, references.target_place
    if config.reference_positions == "beside" or place is None or target_place is None:
        at = _permute(reference_positions(references.index, *size), order.references)
        return _join_rotary(rotary_table(at, config.head_size), target)
    place = _permute(place, order.references)
    target_place = _permute(target_place, order.target)
    return real_rotary(jnp.concatenate([place, target_place], axis=1), config.head_size)


def _join_rotary(first: Rotary, second: Rotary) -> Rotary:
    """Tables of two streams one after the other, a shared batch of 1 repeated where needed."""

    def join(a: Array, b: Array) -> Array:
        batch = max(a.shape[0], b.shape[0])
        a, b = (jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in (a, b))
        return jnp.concatenate([a, b], axis=1)

    return Rotary(join(first.cos, second.cos), join(first.sin, second.sin))


def _masks_by_name(
    block_mask: BlockMask | Mapping[str, BlockMask] | None,
    patterns: tuple[str, ...],
    key_valid: Bool[Array, "b n"] | None,
) -> dict[str, BlockMask] | None:
    """The mask of each pattern, restricted to the tokens that are there."""
    if block_mask is None:
        return None
    if isinstance(block_mask, Mapping):
        masks = dict(block_mask)
    else:
        masks = {name: block_mask for name in patterns if name != DENSE}
    if key_valid is None:
        return masks
    return {name: restrict_keys(mask, key_valid) for name, mask in masks.items()}


def _check_inputs(
    config: ModelConfig,
    latent: Array,
    control: ControlInput | None,
    references: References | None,
    camera: Array | None,
    image_tokens: Array | None,
    warped: WarpedMemory | None,
    entries: MemoryEntries | None,
) -> None:
    _, frames, lh, lw, channels = latent.shape
    if channels != config.in_channels:
        raise InputError(f"latent has {channels} channels, expected {config.in_channels}")
    for name, size, patch in zip(
        ("frames", "rows", "columns"), (frames, lh, lw), config.patch_size, strict=True
    ):
        if size % patch:
            raise InputError(f"latent has {size} {name}, expected a multiple of {patch}")
    for name, given, exists, field in (
        ("control", control, config.control, "control"),
        ("camera", camera, config.camera_width, "camera_width"),
        ("image_tokens", image_tokens, config.image_width, "image_width"),
        ("warped", warped, config.warped_width or None, "warped_width"),
        ("entries", entries, config.entry_width or None, "entry_width"),
    ):
        if given is not None and exists is None:
            raise InputError(f"{name} is given, but the model's config has no {field}")
    if warped is not None and warped.features.shape[-1] != config.warped_width:
        raise InputError(
            f"warped.features has {warped.features.shape[-1]} channels, expected "
            f"config.warped_width = {config.warped_width}"
        )
    if entries is not None and entries.features.shape[-1] != config.entry_width:
        raise InputError(
            f"entries.features has {entries.features.shape[-1]} channels, expected "
            f"config.entry_width = {config.entry_width}"
        )
    if references is not None and references.latent.shape[2:] != latent.shape[2:]:
        raise InputError(
            f"references.latent has shape {references.latent.shape}, expected latents of "
            f"{latent.shape[2:]} as the target's"
        )
    if references is not None and config.reference_positions == "surface":
        for name, place in (
            ("place", references.place),
            ("target_place", references.target_place),
        ):
            if place is None:
                raise InputError(
                    f"references.{name} is None, expected places, since "
                    "config.reference_positions is 'surface'"
                )
