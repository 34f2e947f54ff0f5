"""Textures cut from the photographs that ship inside the wheels of scikit-image and scikit-learn.

Files are read from the installed packages directly, so nothing is downloaded and neither package
is imported. The photographs are split once and for all: scenes for evaluation are textured only
with `HELD_OUT_PHOTOGRAPHS`, which no training scene ever shows.

A texture is stored packed: every texel one uint32 (red in the lowest byte), the square levels of
its mip pyramid laid out one after the other. One gather then fetches a whole colour.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8, UInt32
from PIL import Image

from worldstereo_jax.errors import InputError

TRAIN_PHOTOGRAPHS: tuple[str, ...] = (
    "astronaut",
    "chelsea",
    "china",
    "rocket",
    "brick",
    "grass",
    "gravel",
    "ihc",
    "retina",
    "hubble_deep_field",
    "coins",
    "moon",
    "page",
    "clock_motion",
)
HELD_OUT_PHOTOGRAPHS: tuple[str, ...] = ("coffee", "flower", "camera")

TEXTURE_SIZE = 256
TEXTURE_LEVELS = 7
"""Levels of the pyramid: 256, 128, ... 4 texels wide."""
TEXTURE_TEXELS = sum((TEXTURE_SIZE >> level) ** 2 for level in range(TEXTURE_LEVELS))

_FILES = {
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
_BORDERS = {"retina": 0.2, "clock_motion": 0.05, "page": 0.02}
"""Share of the width cut from each side where a photograph has a black or empty frame."""


def photograph_path(name: str) -> Path:
    """Path of a photograph inside the installed packages.

    Raises InputError for a name outside the two tuples and for a file the package lacks.
    """
    if name not in TRAIN_PHOTOGRAPHS + HELD_OUT_PHOTOGRAPHS:
        raise InputError(f"photograph {name!r} is none of those the scenes are made of")
    package, relative = _FILES.get(name, ("skimage", f"data/{name}.png"))
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"package {package} is not installed; its photograph {name!r} is needed")
    path = Path(spec.submodule_search_locations[0]) / relative
    if not path.is_file():
        raise InputError(f"the installed {package} ships no {relative}, which scenes are made of")
    return path


@functools.cache
def load_photograph(name: str) -> UInt8[np.ndarray, "h w 3"]:
    """A photograph as 8-bit sRGB, grey ones repeated over the channels, at most 768 px wide."""
    with Image.open(photograph_path(name)) as file:
        image = file.convert("RGB")
    border = _BORDERS.get(name, 0.0)
    dx, dy = int(image.width * border), int(image.height * border)
    image = image.crop((dx, dy, image.width - dx, image.height - dy))
    image.thumbnail((768, 768), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    pixels.setflags(write=False)
    return pixels


def sample_texture(
    rng: np.random.Generator, names: tuple[str, ...]
) -> UInt8[np.ndarray, "256 256 3"]:
    """A random square texture: crop, flip, tint and contrast of one of the named photographs.

    The mean is moved into a middle range, so that night skies do not make black rooms, and the
    contrast is lowered for some, since real rooms have calm surfaces too.
    """
    photograph = load_photograph(names[int(rng.integers(len(names)))])
    height, width, _ = photograph.shape
    side = int(min(height, width) * rng.uniform(0.45, 1.0))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    crop = Image.fromarray(photograph[top : top + side, left : left + side])
    crop = crop.resize((TEXTURE_SIZE, TEXTURE_SIZE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    texture = np.asarray(crop, np.float32) / 255.0
    grey = np.ptp(texture.mean((0, 1))) < 0.02
    tint = rng.uniform(0.7, 1.0, 3) if grey else rng.uniform(0.85, 1.0, 3)
    mean = texture.mean()
    target = np.clip(mean, 0.35, 0.65) + rng.uniform(-0.1, 0.15)
    contrast = rng.uniform(0.5, 1.1)
    texture = (target + contrast * (texture - mean)) * (tint / tint.mean()).astype(np.float32)
    return (np.clip(texture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def mip_pyramid(texture: UInt8[np.ndarray, "s s 3"]) -> list[Float[np.ndarray, "_ _ 3"]]:
    """The texture averaged over 2x2 texels again and again, `TEXTURE_LEVELS` levels, 0 to 255."""
    levels = [texture.astype(np.float32)]
    for _ in range(TEXTURE_LEVELS - 1):
        size = levels[-1].shape[0] // 2
        levels.append(levels[-1].reshape(size, 2, size, 2, 3).mean((1, 3)))
    return levels


def pack_texture(
    texture: UInt8[np.ndarray, "256 256 3"],
) -> UInt32[np.ndarray, "texels"]:
    """The pyramid as one row of packed colours, finest level first, rows top to bottom."""
    flat = np.concatenate([level.reshape(-1, 3) for level in mip_pyramid(texture)])
    rgb = np.round(flat).astype(np.uint32)
    return rgb[:, 0] | (rgb[:, 1] << 8) | (rgb[:, 2] << 16)
