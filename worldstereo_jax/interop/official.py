"""Official parameters to ours and back, and a model's sizes from the shapes of its tensors."""

import functools
import typing
from collections.abc import Callable, Mapping

import jax
import numpy as np

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import ControlConfig, ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.layer_stacks import flat_paths, from_flat, runs
from worldstereo_jax.interop.official_names import MODEL_RULES, Place, Rule, is_ignored, places
from worldstereo_jax.models.worldstereo import WorldStereo, smallest_inputs

Shapes = Mapping[str, tuple[int, ...]]

_PATCHES = "patch_embedding.weight"
_FFN = "blocks.0.ffn.net.0.proj.weight"
_TIME = "condition_embedder.time_embedder.linear_1.weight"
_TEXT = "condition_embedder.text_embedder.linear_1.weight"
_IMAGE = "condition_embedder.image_embedder.norm1.weight"
_OUT = "proj_out.weight"
_IMAGE_KEYS = "blocks.0.attn2.add_k_proj.weight"


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of `WorldStereo(config)` by path; nothing is allocated."""
    return dict(_parameter_shapes(config))


@functools.lru_cache(maxsize=16)
def _parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    inputs = jax.eval_shape(lambda: smallest_inputs(config))
    key = jax.eval_shape(lambda: jax.random.key(0))
    tree = jax.eval_shape(lambda key, inputs: WorldStereo(config).init(key, **inputs), key, inputs)
    return {path: leaf.shape for path, leaf in flat_paths(tree["params"]).items()}


@functools.lru_cache(maxsize=16)
def _model_table(config: ModelConfig) -> tuple[dict[str, Place], dict[str, tuple[int, ...]]]:
    shapes = parameter_shapes(config)
    layers: list[tuple[str, int | None]] = []
    for run, members in runs(config).items():
        for index in range(len(members)):
            if config.scan_layers:
                layers.append((f"{run}/layers", index))
            else:
                layers.append((f"{run}/layer_{index}", None))
    return places(shapes, MODEL_RULES, layers), shapes


def model_places(config: ModelConfig) -> dict[str, Place]:
    """Every official tensor name of `WorldStereo(config)`, with its place in our parameters."""
    return dict(_model_table(config)[0])


def official_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape that every official tensor of `WorldStereo(config)` must have, by name."""
    table, shapes = _model_table(config)
    return {name: _official_shape(place, shapes) for name, place in table.items()}


def _official_shape(place: Place, shapes: Shapes) -> tuple[int, ...]:
    shape = shapes[place.path]
    return place.layout.official_shape(shape if place.index is None else shape[1:])


def params_from_official(
    tensors: Mapping[str, np.ndarray],
    config: ModelConfig,
    *,
    source: str = "the given tensors",
    base: PyTree | None = None,
) -> PyTree:
    """Our parameters from tensors under official names.

    Args:
        tensors: official name to array; may be lazy (`SafetensorsFile`), each is read once.
        config: sizes, for instance from `infer_config`.
        source: what to call the tensors in messages, usually the file.
        base: parameters that supply what `tensors` lacks (the base model's, or the zeros of this
            project's own slots); without it nothing may be missing.

    Returns:
        The parameter tree, numpy arrays of the tensors' own type.

    Raises:
        InputError: for a tensor that is missing, unknown, or of a wrong shape, by name.
    """
    table, shapes = _model_table(config)
    return from_official(tensors, table, shapes, source=source, base=base)


def from_official(
    tensors: Mapping[str, np.ndarray],
    table: Mapping[str, Place],
    shapes: Shapes,
    *,
    source: str = "the given tensors",
    base: PyTree | None = None,
) -> PyTree:
    """`params_from_official` for any module with a table of places and shapes by path."""
    check_names_and_shapes(tensors, table, shapes, source=source, may_miss=base is not None)
    base_flat = flat_paths(base) if base is not None else {}
    flat: dict[str, np.ndarray] = {}
    for path in {place.path for place in table.values()} & base_flat.keys():
        flat[path] = np.array(base_flat[path])
    for name, place in table.items():
        if name not in tensors:
            continue
        array = place.layout.to_ours(np.asarray(tensors[name]))
        if place.index is None:
            flat[place.path] = array
            continue
        if place.path not in flat:
            flat[place.path] = np.empty(shapes[place.path], array.dtype)
        flat[place.path][place.index] = array
    return from_flat(flat)


def check_names_and_shapes(
    tensors: Mapping[str, typing.Any],
    table: Mapping[str, Place],
    shapes: Shapes,
    *,
    source: str,
    may_miss: bool = False,
) -> None:
    """Raise InputError for the first unknown, missing or misshapen tensor, naming it.

    Shapes are taken from headers where `tensors` has them, so nothing is read.
    """
    headers = getattr(tensors, "shapes", None)
    for name in tensors:
        if name not in table:
            if is_ignored(name):
                continue
            raise InputError(f"{source}: tensor {name} belongs to no parameter of the model")
        expected = _official_shape(table[name], shapes)
        found = tuple(headers[name] if headers is not None else tensors[name].shape)
        if found != expected:
            raise InputError(
                f"{source}: tensor {name} has shape {list(found)}, expected {list(expected)}"
            )
    missing = [name for name in table if name not in tensors]
    if missing and not may_miss:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{source}: tensor {missing[0]}{more} is missing")


def official_from_params(params: PyTree, config: ModelConfig) -> dict[str, np.ndarray]:
    """Our parameters under official names and layouts; the inverse of `params_from_official`."""
    return to_official(params, model_places(config))


def to_official(params: PyTree, table: Mapping[str, Place]) -> dict[str, np.ndarray]:
    """`official_from_params` for any module with a table of places."""
    flat = flat_paths(params)
    tensors = {}
    for name, place in table.items():
        array = np.asarray(flat[place.path])
        array = array if place.index is None else array[place.index]
        tensors[name] = np.ascontiguousarray(place.layout.to_official(array)).reshape(
            place.layout.official_shape(array.shape)
        )
    return tensors


def module_table(
    params: PyTree, rules: tuple[Rule, ...]
) -> tuple[dict[str, Place], dict[str, tuple[int, ...]]]:
    """Table and shapes of a module without layer stacks, from its (abstract) parameters."""
    shapes = {path: tuple(leaf.shape) for path, leaf in flat_paths(params).items()}
    return places(shapes, rules), shapes


def shows_sizes(shapes: Shapes) -> bool:
    """Whether tensors under official names show every size of a backbone, for `infer_config`.

    A checkpoint that was trained in part lacks what was frozen, often whole layers' parts; its
    sizes are those of its base model.
    """
    needed = {_PATCHES, _FFN, _TIME, _TEXT, _OUT}
    if _IMAGE_KEYS in shapes:
        needed.add(_IMAGE)
    return needed <= set(shapes)


def infer_config(
    shapes: Shapes,
    *,
    num_heads: int,
    control_num_heads: int | None = None,
    update_ref: bool = True,
    patch_size: tuple[int, int, int] | None = None,
    mask_downsample: int | None = None,
    source: str = "the given tensors",
    **choices: typing.Any,
) -> ModelConfig:
    """A model's sizes from the shapes of its tensors under official names.

    Args:
        shapes: official name to shape.
        num_heads: attention heads of the backbone, which no shape shows.
        control_num_heads: those of the control branch; needed when there is one.
        update_ref: see `ModelConfig`.
        patch_size: checked against the patch embedding's kernel when given.
        mask_downsample: checked against the mask embedding's kernel when given.
        source: what to call the tensors in messages.
        **choices: further fields of `ModelConfig` (dtype, remat, attention_pattern ...).

    Raises:
        InputError: when a tensor that shows a size is missing, or sizes contradict each other.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in shapes:
            raise InputError(f"{source}: tensor {name} is missing")
        found = tuple(shapes[name])
        if len(found) != rank:
            raise InputError(
                f"{source}: tensor {name} has shape {list(found)}, expected {rank} axes"
            )
        return found

    width, in_channels, *patch = shape(_PATCHES, 5)
    _agree(source, "patch_size", tuple(patch), patch_size)
    ffn_width, _ = shape(_FFN, 2)
    _, freq_dim = shape(_TIME, 2)
    _, text_dim = shape(_TEXT, 2)
    out_size, _ = shape(_OUT, 2)
    if not out_size or out_size % int(np.prod(patch)):
        raise InputError(
            f"{source}: tensor proj_out.weight has {out_size} rows, expected a multiple of the "
            f"{int(np.prod(patch))} pixels of a patch"
        )
    image_width = None
    if _IMAGE in shapes:
        (image_width,) = shape(_IMAGE, 1)
    camera_width = None
    if "camera_embedding.0.weight" in shapes:
        _, camera_width = shape("camera_embedding.0.weight", 2)
    warped_width = 0
    if "warped_entry.weight" in shapes:
        _, per_token = shape("warped_entry.weight", 2)
        warped_width = per_token // int(np.prod(patch)) - 1
    entry_width = 0
    if "blocks.0.entry_attn.to_k.weight" in shapes:
        _, entry_width = shape("blocks.0.entry_attn.to_k.weight", 2)
    return ModelConfig(
        width=width,
        num_layers=_count_layers(shapes, "blocks."),
        num_heads=num_heads,
        ffn_width=ffn_width,
        text_dim=text_dim,
        in_channels=in_channels,
        out_channels=out_size // int(np.prod(patch)),
        patch_size=(patch[0], patch[1], patch[2]),
        freq_dim=freq_dim,
        image_width=image_width,
        camera_width=camera_width,
        control=_infer_control(shapes, shape, control_num_heads, mask_downsample, source),
        update_ref=update_ref,
        warped_width=warped_width,
        entry_width=entry_width,
        **choices,
    )


def _infer_control(
    shapes: Shapes,
    shape: Callable[[str, int], tuple[int, ...]],
    num_heads: int | None,
    mask_downsample: int | None,
    source: str,
) -> ControlConfig | None:
    branch = "controlnet.controlnet_"
    if f"{branch}patch_embedding.weight" not in shapes:
        return None
    if num_heads is None:
        raise InputError(
            f"{source}: control_num_heads is missing, the tensors hold a control branch"
        )
    embed_width, latent_channels, *_ = shape(f"{branch}patch_embedding.weight", 5)
    mid, pixel_channels, downsample, *_ = shape(f"{branch}mask_embedding.mask_proj.0.weight", 5)
    _agree(source, "mask_downsample", downsample, mask_downsample)
    ffn_width, width = shape(f"{branch}blocks.0.ffn.0.weight", 2)
    return ControlConfig(
        width=width,
        ffn_width=ffn_width,
        num_heads=num_heads,
        num_layers=_count_layers(shapes, f"{branch}blocks."),
        embed_width=embed_width,
        mid_channels=mid,
        pixel_channels=pixel_channels,
        latent_channels=latent_channels,
        mask_downsample=downsample,
    )


def _count_layers(shapes: Shapes, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


def _agree(source: str, field: str, found: typing.Any, expected: typing.Any) -> None:
    if expected is not None and tuple(np.ravel(expected)) != tuple(np.ravel(found)):
        raise InputError(f"{source}: the tensors show {field} {found}, expected {expected}")
