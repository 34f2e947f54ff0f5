"""preprocessor_config.json of the base model's image processor to ours."""

import typing
from collections.abc import Mapping

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.official_config import FLAG, Keys, check_kinds, translate
from worldstereo_jax.models.clip_preparation import ClipPreparation

_STEPS = "do_resize do_center_crop do_normalize do_rescale do_convert_rgb"
IMAGE_PROCESSOR_KEYS = Keys(
    {
        "crop_size": "crop",
        "do_center_crop": "do_center_crop",
        "do_normalize": "do_normalize",
        "do_resize": "do_resize",
        "image_mean": "mean",
        "image_std": "std",
        "resample": "resample",
        "rescale_factor": "factor",
        "size": "resize",
    },
    {"default_to_square": False, "do_pad": None, "pad_size": None},
    # The official code turns do_rescale off, whatever the file says: `prepare_clip` has a switch.
    "_valid_processor_keys data_format device disable_grouping do_convert_rgb do_rescale "
    "feature_extractor_type image_processor_type input_data_format processor_class return_tensors",
)
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Numbers of the Pillow library."""


def clip_preparation(
    values: Mapping[str, typing.Any], *, source: str = "image processor config"
) -> ClipPreparation:
    """What a CLIPImageProcessor of these settings does; absent ones are the library's.

    Raises:
        InputError: for an unknown key, or a value that is none or not supported, by its key.
    """
    fields = translate(values, IMAGE_PROCESSOR_KEYS, source=source)
    check_kinds(values, dict.fromkeys(_STEPS.split(), FLAG), source=source)
    given = {name: fields[name] for name in ("resize", "crop") if fields.get(name) is not None}
    found: dict[str, typing.Any] = {}
    if "resize" in given:
        found["resize"] = _size(given["resize"], "size", ("shortest_edge",), source)
    if "crop" in given:
        crop = _size(given["crop"], "crop_size", (), source)
        found["crop"] = (crop, crop) if isinstance(crop, int) else crop
    if not fields.get("do_resize", True):
        found["resize"] = None
    if not fields.get("do_center_crop", True):
        found["crop"] = None
    if "resample" in fields:
        if fields["resample"] not in _RESAMPLE:
            raise InputError(
                f"{source}: resample is {fields['resample']!r}, expected 2 (bilinear) or 3 "
                "(bicubic)"
            )
        found["resample"] = _RESAMPLE[fields["resample"]]
    for name, key, neutral in (("mean", "image_mean", 0.0), ("std", "image_std", 1.0)):
        if not fields.get("do_normalize", True):
            found[name] = (neutral,) * 3
        elif fields.get(name) is not None:
            found[name] = _colours(fields[name], key, source)
    factor = fields.get("factor", 1 / 255)
    if not _is_number(factor) or abs(factor * 255 - 1) > 1e-6:
        raise InputError(f"{source}: rescale_factor is {factor!r}, but only 1/255 is supported")
    return ClipPreparation(**found)


def _size(
    value: typing.Any, key: str, single: tuple[str, ...], source: str
) -> int | tuple[int, int]:
    """A number, one under a name of `single`, or rows and columns."""
    if isinstance(value, int) and _is_size(value):
        return value
    forms = [single, ("height", "width")] if single else [("height", "width")]
    for names in forms:
        if isinstance(value, dict) and set(value) == set(names):
            sizes = [value[name] for name in names]
            if all(map(_is_size, sizes)):
                return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])
    named = " or ".join(" and ".join(names) for names in forms)
    raise InputError(
        f"{source}: {key} is {value!r}, expected a whole number above 0 or an object of such with "
        f"{named}"
    )


def _colours(value: typing.Any, key: str, source: str) -> tuple[float, float, float]:
    values = [value] * 3 if _is_number(value) else value
    wrong = not isinstance(values, list | tuple) or len(values) != 3
    if wrong or not all(map(_is_number, values)) or (key == "image_std" and 0 in values):
        raise InputError(
            f"{source}: {key} is {value!r}, expected a number per colour"
            + (", none of them 0" if key == "image_std" else "")
        )
    red, green, blue = map(float, values)
    return red, green, blue


def _is_size(value: typing.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: typing.Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
