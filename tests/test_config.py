"""Model configs: presets, checks, json form."""

import json

import pytest

from worldstereo_jax.config import PRESETS, ModelConfig, get_preset
from worldstereo_jax.errors import InputError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    config = get_preset(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_per_layer_patterns_survive_json():
    config = get_preset("tiny").replace(attention_pattern=("dense",) * 3 + ("frame_pair",))
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.layer_patterns[-1] == "frame_pair"


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(InputError, match=r"unknown preset 'tinny': .*'tiny'"):
        get_preset("tinny")
    fields = get_preset("tiny").to_dict()
    with pytest.raises(InputError, match=r"unknown field 'widht': .*'width'"):
        ModelConfig.from_dict({**fields, "widht": 3})
    fields["control"]["depth"] = 3
    with pytest.raises(InputError, match="control: unknown field 'depth'"):
        ModelConfig.from_dict(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "multiple of num_heads 5"),
        ({"num_layers": 1}, "control.num_layers is 2, expected at most the backbone's 1"),
        ({"remat": "some"}, "remat is 'some', expected one of none"),
        ({"attention_normalisation": "none"}, "is 'none', expected one of allowed, multiply"),
        ({"reference_positions": "grid"}, "is 'grid', expected one of beside, surface"),
        ({"reference_positions": "surface", "camera_width": None}, "attends to no views"),
        ({"attention_pattern": ("dense",)}, "names 1 layers, expected 4"),
    ],
)
def test_contradictions_are_named(change, message):
    with pytest.raises(InputError, match=message):
        get_preset("tiny").replace(**change)
