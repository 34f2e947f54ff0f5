"""The image processor's settings: as published, every supported form, and faults by name."""

import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.image_processor import clip_preparation
from worldstereo_jax.models.clip_preparation import MEAN, STD, ClipPreparation

PUBLISHED = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True,
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": list(MEAN),
    "image_processor_type": "CLIPImageProcessor", "image_std": list(STD), "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 224},
}  # fmt: skip


def test_the_published_settings_are_the_defaults():
    assert clip_preparation(PUBLISHED) == ClipPreparation() == clip_preparation({})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"size": 30, "crop_size": 20}, ClipPreparation(30, (20, 20))),
        ({"size": {"height": 20, "width": 30}}, ClipPreparation((20, 30))),
        ({"do_resize": False, "do_center_crop": False}, ClipPreparation(None, None)),
        ({"do_normalize": False}, ClipPreparation(mean=(0.0,) * 3, std=(1.0,) * 3)),
        ({"image_mean": 0.5, "resample": 2}, ClipPreparation(mean=(0.5,) * 3, resample="bilinear")),
        ({"do_rescale": False, "data_format": "channels_first"}, ClipPreparation()),
    ],
)
def test_every_form_is_read(change, expected):
    assert clip_preparation({**PUBLISHED, **change}) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"do_flip": True}, "here: unknown key 'do_flip'"),
        ({"size": {"longest_edge": 9}}, "size is .*expected a whole number above 0 or .*shortest"),
        ({"crop_size": {"shortest_edge": 9}}, "crop_size is .*with height and width"),
        ({"size": True}, "size is True"),
        ({"resample": 1}, r"resample is 1, expected 2 \(bilinear\) or 3"),
        ({"image_std": [1, 0, 1]}, "image_std is .*none of them 0"),
        ({"image_mean": [0.5]}, "image_mean is .*expected a number per colour"),
        ({"rescale_factor": 1}, "rescale_factor is 1, but only 1/255"),
        ({"do_resize": "yes"}, "do_resize is 'yes', expected true or false"),
    ],
)
def test_faults_are_named(change, said):
    with pytest.raises(InputError, match=said):
        clip_preparation({**PUBLISHED, **change}, source="here")


def test_equals_the_library(tmp_path):
    """The file that transformers writes of its own processor is read as what it does."""
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    processor = transformers.CLIPImageProcessor(size=30, crop_size=20, resample=2)
    found = clip_preparation(processor.to_dict())
    assert found == ClipPreparation(30, (20, 20), resample="bilinear")
