"""The memory folder's format: which arrays its files hold, of what type, shape and meaning.

    memory.json                   format, version, model, capacities, counters, fields
    spatial_stereo.safetensors    the keyframe bank, and whatever of rows S1 to S8 is stored
    global_geometric.safetensors  the point bank

Only filled slots are written; capacities and counters stand in memory.json. What a folder of an
earlier version lacks loads as it is in an empty memory. Fields marked optional may be absent: a
bank that has none of them loads, and one that has them loads too, since their names, types and
shapes are fixed here from version 1 on. A name may end in `.<key>`, for the level of a pyramid or
the kind of a descriptor.

Axes: v keyframes, h w pixels, lh lw latent pixels, n entries (surface patches), words 32-bit words,
c channels, p stored pairs of views, m sparse matches, t tokens per view; numbers are themselves.
"""

import dataclasses

NAME = "worldstereo-memory"
VERSION = 2
"""What is written; earlier versions are read too. 2 has `measured`."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of a file: safetensors types allowed, axes, meaning, row of the specification.

    since: the version of the format that first had it.
    """

    types: tuple[str, ...]
    axes: tuple[str, ...]
    meaning: str
    row: str
    optional: bool = False
    keyed: bool = False
    since: int = 1


def _field(types: str, axes: str, meaning: str, row: str, since: int = 1, **kind: bool) -> Field:
    return Field(tuple(types.split()), tuple(axes.split()), meaning, row, since=since, **kind)


SPATIAL_STEREO = {
    "images": _field("F32", "v h w 3", "keyframes, RGB in [-1, 1]", "S7"),
    "depth": _field("F32", "v h w", "camera z in world units, 0 = unknown", "S7"),
    "confidence": _field("F32", "v h w", "of the depth, in [0, 1]", "S6"),
    "measured": _field(
        "BOOL", "v h w", "the depth was measured, not read from the memory", "S6", since=2
    ),
    "w2c": _field("F32", "v 4 4", "world to camera, OpenCV axes", "S7"),
    "intrinsics": _field("F32", "v 3 3", "in pixels, pixel centres at +0.5", "S7"),
    "valid": _field("BOOL", "v", "the slot holds a view", "S7"),
    "source": _field("I32", "v", "number of the clip that the view comes from", "S7"),
    "names": _field("U8", "v c", "names of the views, UTF-8, padded by zeros", "S7", optional=True),
    "latents": _field("F32", "v lh lw c", "latents of the views", "S7", optional=True),
    "pyramid": _field(
        "F32 F16 BF16 I8 U8",
        "n c",
        "features of the entries at level <key>, 0 the finest",
        "S1",
        optional=True,
        keyed=True,
    ),
    "pyramid_scale": _field(
        "F32", "c", "scales of quantised features at level <key>", "S31", optional=True, keyed=True
    ),
    "descriptor": _field(
        "F32 F16 BF16 I8 U8 U32",
        "n c",
        "descriptors of kind <key>: texture, edge, census, ...",
        "S2",
        optional=True,
        keyed=True,
    ),
    "position": _field("F32", "n 3", "world positions of the entries", "S3", optional=True),
    "normal": _field(
        "F32", "n 3", "unit world normals, facing the camera that saw them", "S4", optional=True
    ),
    "views": _field("U32", "n words", "bitset of the views that saw them", "S5", optional=True),
    "direction": _field("F32", "n 3", "mean unit direction to those cameras", "S5", optional=True),
    "distance": _field("F32", "n", "mean distance to them, world units", "S5", optional=True),
    "footprint": _field(
        "F32", "n", "world size of one pixel of the sharpest view", "S5", optional=True
    ),
    "entry_confidence": _field("F32", "n", "in [0, 1]", "S6", optional=True),
    "pairs": _field("I32", "p 2", "view indices of stored correspondences", "S8", optional=True),
    "dense_pixels": _field(
        "F32", "p h w 2", "(x, y) in the second view per pixel of the first", "S8", optional=True
    ),
    "dense_valid": _field("BOOL", "p h w", "where they hold", "S8", optional=True),
    "sparse_pixels": _field(
        "F32", "m 4", "(x, y) in the first view, (x, y) in the second", "S8", optional=True
    ),
    "sparse_pair": _field("I32", "m", "index into pairs", "S8", optional=True),
    "patch_share": _field(
        "F32", "p t t", "share of a token's pixels that land in each token", "S8", optional=True
    ),
}

GLOBAL_GEOMETRIC = {
    "positions": _field("F32", "n 3", "world positions of the points", "S26"),
    "colors": _field("F32", "n 3", "RGB in [-1, 1]", "S26"),
    "valid": _field("BOOL", "n", "the slot holds a point", "S26"),
}

FILES = {"spatial_stereo": SPATIAL_STEREO, "global_geometric": GLOBAL_GEOMETRIC}


def find_field(file: str, name: str) -> Field | None:
    """The field that `name` (with its key) means in `file`, None if the format has none."""
    stem, dot, key = name.partition(".")
    field = FILES[file].get(stem)
    if field is None or field.keyed != bool(dot) or (dot and not key):
        return None
    return field


def bind_axes(field: Field, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Whether `shape` fits the field's axes and the `sizes` known so far, to which it adds."""
    if len(shape) != len(field.axes):
        return False
    for axis, size in zip(field.axes, shape, strict=True):
        wanted = int(axis) if axis.isdigit() else size if axis == "c" else sizes.get(axis, size)
        if size != wanted:
            return False
        if not axis.isdigit():
            sizes[axis] = size
    return True
