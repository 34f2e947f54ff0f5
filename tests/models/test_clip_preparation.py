"""Pictures for the image encoder: against Pillow, and transformers' CLIPImageProcessor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from tests.models.official_modules import from_torch
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.clip_preparation import MEAN, STD, ClipPreparation, prepare_clip

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def as_image(picture):
    return jnp.asarray(picture / 127.5 - 1, jnp.float32)[None]


@functools.partial(jax.jit, static_argnames=("preparation", "pixel_range"))
def prepare(image, preparation, pixel_range="official"):
    return prepare_clip(image, preparation, pixel_range=pixel_range)


@pytest.fixture(scope="module")
def picture():
    """Waves and noise with black and white in them, 60 x 104 bytes."""
    y, x = np.mgrid[0:60, 0:104]
    waves = np.stack([np.sin(x / 5), np.cos(y / 4), np.sin(x / 3 + y)], -1)
    noise = np.random.default_rng(0).normal(size=waves.shape)
    return np.clip(127.5 + 110 * waves + 60 * noise, 0, 255).astype(np.uint8)


def assert_bytes_equal(found, expected, ties=1e-3):
    """But for ties, which Pillow's fixed-point sums may round the other way: by one."""
    off = np.abs(np.asarray(found, np.float64) - expected)
    assert off.max() <= 1.01
    assert (off > 0.01).mean() < ties


@pytest.mark.parametrize(
    ("preparation", "size", "box"),
    [
        (ClipPreparation(resize=28, crop=(28, 28), **PLAIN), (48, 28), (10, 0, 38, 28)),
        (ClipPreparation(resize=75, crop=(70, 64), **PLAIN), (130, 75), (33, 2, 97, 72)),
        (ClipPreparation(resize=(28, 28), crop=None, **PLAIN), (28, 28), (0, 0, 28, 28)),
        (ClipPreparation(resize=None, crop=(50, 104), **PLAIN), (104, 60), (0, 5, 104, 55)),
        (
            ClipPreparation(resize=28, crop=(28, 28), resample="bilinear", **PLAIN),
            (48, 28),
            (10, 0, 38, 28),
        ),
    ],
)
def test_resized_by_the_shorter_side_and_cut_from_the_middle(picture, preparation, size, box):
    method = getattr(PIL.Image.Resampling, preparation.resample.upper())
    expected = PIL.Image.fromarray(picture).resize(size, method).crop(box)
    found = prepare(as_image(picture), preparation)[0]
    # The bilinear weights are fractions of few digits, whose sums are often ties.
    ties = 1e-3 if preparation.resample == "bicubic" else 0.03
    assert_bytes_equal(found, np.asarray(expected), ties)


def test_proportions_are_kept_whichever_side_is_shorter():
    """A square stays a square; the longer side is rounded down."""
    preparation = ClipPreparation()
    assert preparation.resized(480, 832) == (224, 388)
    assert preparation.resized(832, 480) == (388, 224)
    image = -jnp.ones((1, 48, 96, 3)).at[:, 16:32, 40:56].set(-1.0)
    pixels = prepare(image, ClipPreparation(resize=24, crop=(24, 24), **PLAIN))
    seen = np.asarray(pixels[0, ..., 0] > 128)
    assert seen.sum() == 64
    assert seen[8:16, 8:16].all()


def test_pixels_are_standardised_as_officially_or_as_trained():
    image = jnp.full((1, 224, 224, 3), 0.5)
    unit = prepare(image, ClipPreparation(), pixel_range="unit")
    np.testing.assert_allclose(unit[0, 3, 4, 0], (191 / 255 - MEAN[0]) / STD[0], rtol=1e-5)
    official = prepare(image, ClipPreparation())
    np.testing.assert_allclose(official[0, 3, 4, 2], (191 - MEAN[2]) / STD[2], rtol=1e-5)


def test_faults_are_named():
    image = jnp.zeros((1, 8, 9, 3))
    with pytest.raises(InputError, match="pixel_range is 'raw', expected official or unit"):
        prepare_clip(image, ClipPreparation(), pixel_range="raw")
    with pytest.raises(InputError, match="resample is 'lanczos', expected one of bicubic"):
        ClipPreparation(resample="lanczos")
    with pytest.raises(InputError, match="crop is 9 x 9 pixels, expected at most the 8 x 9"):
        prepare_clip(image, ClipPreparation(resize=8, crop=(9, 9)))


@pytest.mark.parametrize("pixel_range", ["official", "unit"])
def test_equals_transformers(picture, pixel_range):
    """With the published settings, do_rescale off and on; a wide picture and a tall one."""
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    processor = transformers.CLIPImageProcessor(do_rescale=pixel_range == "unit")
    unit = 1 if pixel_range == "official" else 255
    for turned in (picture, picture.swapaxes(0, 1)):
        theirs = processor(images=PIL.Image.fromarray(turned), return_tensors="pt")
        expected = np.moveaxis(from_torch(theirs["pixel_values"])[0], 0, -1)
        found = np.asarray(prepare(as_image(turned), ClipPreparation(), pixel_range))[0]
        scale = unit * np.array(STD)
        assert_bytes_equal(found * scale, expected * scale)
