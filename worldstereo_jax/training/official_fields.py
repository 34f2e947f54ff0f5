"""Training clips of official models as the named arrays of a `ClipCache`, and back.

A clip of 81 frames has 390 MB of rays, which two matrices a frame say as well: these are kept, and
the rays drawn when a step needs them. Holes are kept as bits, latents and tokens in half precision.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import TokenGeometry
from worldstereo_jax.array_types import Array, Float, PyTree, ndarray
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import plucker_rays
from worldstereo_jax.geometry.normalisation import normalise_unified
from worldstereo_jax.models.worldstereo import MemoryEntries, WarpedMemory
from worldstereo_jax.sampling.official_conditions import OfficialConditions
from worldstereo_jax.sampling.world import Cameras
from worldstereo_jax.training.official_objective import TrainingClip

_HALF = ("condition", "render_latent", "reference", "text", "image", "target")
_WHOLE = ("camera", "reference_index", "reference_camera", "reference_valid")
_NULL_TEXT, _NEGATIVE_TEXT = "null_text.npy", "negative_text.npy"
_GEOMETRY = ("target_geometry", "reference_geometry", "entry_geometry")
_PLACES = ("reference_place", "target_place")
_WIDTHS = ("warped_width", "entry_width")


def to_fields(clip: TrainingClip, cameras: Cameras) -> dict[str, np.ndarray]:
    """One clip, without a batch axis, as flat named arrays.

    Args:
        clip: of `Preparation.clip`.
        cameras: the path that it runs along.

    Raises:
        InputError: for a value that half precision does not hold.
    """
    conditions = clip.conditions
    parts = {**_shallow(conditions), **_shallow(clip)}
    fields = {}
    for name in _HALF:
        if parts[name] is not None:
            fields[name] = _half(name, parts[name])
    whole = (*_WHOLE, *_PLACES)
    fields |= {name: np.asarray(parts[name]) for name in whole if parts[name] is not None}
    fields["render_holes"] = np.packbits(np.asarray(conditions.render_mask) > 0.5, axis=-1)
    # In the normalised frame already, as the rays are.
    fields["w2c"] = np.asarray(_normalised(cameras.w2c))
    fields["intrinsics"] = np.asarray(cameras.intrinsics)
    for side in _GEOMETRY:
        if parts[side] is not None:
            for name, array in _shallow(parts[side]).items():
                fields[f"{side}.{name}"] = np.asarray(array)
    if conditions.warped is not None:
        fields["warped.features"] = _half("warped.features", conditions.warped.features)
        fields["warped.log_weight"] = np.asarray(conditions.warped.log_weight)
    if conditions.entries is not None:
        fields["entries.features"] = _half("entries.features", conditions.entries.features)
        for name in ("place", "target_place", "valid"):
            fields[f"entries.{name}"] = np.asarray(getattr(conditions.entries, name))
    return fields


@jax.jit
def _normalised(w2c: Float[Array, "f 4 4"]) -> Float[Array, "f 4 4"]:
    """A path in its normalised frame, by one program."""
    return normalise_unified(w2c, w2c[:1])[0]


def from_fields(
    fields: Mapping[str, Array | ndarray], *, height: int, width: int, ray_x_offset: float
) -> TrainingClip:
    """A batch of clips as the loss takes it; for use inside jit.

    Args:
        fields: of `to_fields`, with a leading batch axis.
        height, width: image pixels.
        ray_x_offset: see `official_world.Quirks`.

    Raises:
        InputError: for clips that lack a field.
    """

    def get(name: str, dtype: jax.typing.DTypeLike | None = None) -> Array:
        if name not in fields:
            raise InputError(f"prepared clips have no field {name!r}: build their cache again")
        array = jnp.asarray(fields[name])
        return array if dtype is None else array.astype(dtype)

    def geometry(side: str) -> TokenGeometry | None:
        if f"{side}.valid" not in fields:
            return None
        names = [field.name for field in dataclasses.fields(TokenGeometry)]
        return TokenGeometry(**{name: get(f"{side}.{name}") for name in names})

    def rays(w2c: Array, intrinsics: Array) -> Array:
        return plucker_rays(w2c, intrinsics, height, width, x_offset=ray_x_offset)

    warped = entries = None
    if "warped.features" in fields:
        warped = WarpedMemory(get("warped.features", jnp.float32), get("warped.log_weight"))
    if "entries.features" in fields:
        entries = MemoryEntries(
            features=get("entries.features", jnp.float32),
            **{name: get(f"entries.{name}") for name in ("place", "target_place", "valid")},
        )
    holes = jnp.unpackbits(get("render_holes"), axis=-1, count=width)
    conditions = OfficialConditions(
        condition=get("condition", jnp.float32),
        render_latent=get("render_latent", jnp.float32),
        render_mask=holes.astype(jnp.float32),
        plucker=jax.vmap(rays)(get("w2c"), get("intrinsics")),
        reference=get("reference", jnp.float32),
        **{name: get(name) for name in _WHOLE},
        **{name: get(name) for name in _PLACES if name in fields},
        target_geometry=geometry("target_geometry"),
        reference_geometry=geometry("reference_geometry"),
        entry_geometry=geometry("entry_geometry"),
        warped=warped,
        entries=entries,
    )
    return TrainingClip(
        conditions=conditions,
        text=get("text", jnp.float32),
        image=get("image", jnp.float32) if "image" in fields else None,
        target=get("target", jnp.float32),
    )


def clip_recipe(
    config: ModelConfig, *, height: int, width: int, frames: int, ray_x_offset: float
) -> dict[str, object]:
    """What a cache's clips were made for, as plain json values; see `check_recipe`."""
    stride = None if config.control is None else config.control.mask_downsample
    # Of what official models do not read, nothing is said of clips without: their caches are as old
    # as that.
    own = {name: getattr(config, name) for name in _WIDTHS if getattr(config, name) > 0}
    if config.reference_positions == "surface":
        own["reference_positions"] = config.reference_positions
    return {
        "height": height,
        "width": width,
        "frames": frames,
        "frame_stride": stride,
        "ray_x_offset": ray_x_offset,
        "text_width": config.text_dim,
        "image_width": config.image_width,
        "camera_width": config.camera_width,
        **own,
    }


def check_recipe(recipe: Mapping[str, object], config: ModelConfig, source: str) -> None:
    """Refuse clips that were made for another model.

    Warps, entries and places that the model does not read may be there, and are then not read.

    Args:
        recipe: of the cache.
        config: of the transformer that is to be trained.
        source: what to call the cache.

    Raises:
        InputError: naming what differs.
    """
    sizes = ("height", "width", "frames", "ray_x_offset")
    missing = [name for name in sizes if name not in recipe]
    if missing:
        raise InputError(f"{source}: holds no clips of official models (no {missing[0]!r})")
    wanted = clip_recipe(config, **{name: recipe[name] for name in sizes})  # pyright: ignore
    for name, value in wanted.items():
        if name in _WIDTHS and name not in recipe:
            raise InputError(
                f"{source}: its clips lack what a model of {name} {value} reads; build their cache "
                "again with --stereo"
            )
        if name == "reference_positions" and name not in recipe:
            raise InputError(
                f"{source}: its clips lack the places that a model of reference_positions {value} "
                "reads; build their cache again with --reference-positions surface"
            )
        if recipe.get(name) != value:
            raise InputError(
                f"{source}: its clips were made for a model of {name} {recipe.get(name)}, this one "
                f"has {value}"
            )


def write_texts(folder: Path, null: Float[Array, "l ct"], negative: Float[Array, "l ct"]) -> None:
    """Keep what all clips share beside them: the text encoder's output of two prompts.

    Args:
        folder: of the cache.
        null: of the empty prompt.
        negative: of the checkpoint's negative prompt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / _NULL_TEXT, _half("null text", null))
    np.save(folder / _NEGATIVE_TEXT, _half("negative text", negative))


def read_null_text(folder: Path) -> Float[Array, "l ct"]:
    """What `write_texts` kept of the empty prompt.

    Raises:
        InputError: when it is missing or damaged.
    """
    return _read_text(folder / _NULL_TEXT)


def read_negative_text(folder: Path) -> Float[Array, "l ct"]:
    """What `write_texts` kept of the negative prompt.

    Raises:
        InputError: when it is missing or damaged.
    """
    return _read_text(folder / _NEGATIVE_TEXT)


def _read_text(path: Path) -> Float[Array, "l ct"]:
    try:
        return jnp.asarray(np.load(path), jnp.float32)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is missing or damaged: build the cache again") from error


def _shallow(tree: PyTree) -> dict[str, PyTree]:
    """The fields of a dataclass by name."""
    return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}


def _half(name: str, array: Array) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = np.asarray(array, np.float32).astype(np.float16)
    if not np.isfinite(found).all():
        raise InputError(f"field {name!r} holds a value that half precision does not")
    return found
