"""Name tables at full size against the libraries' own tensor lists, both ways."""

import re
from pathlib import Path

import numpy as np
import pytest

from worldstereo_jax.config import get_preset
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.components import match_places
from worldstereo_jax.interop.encoder_names import (
    clip_vision_table,
    depth_anything_table,
    dinov2_table,
    umt5_table,
)
from worldstereo_jax.interop.official import official_shapes
from worldstereo_jax.interop.official_names import MATRIX, SAME, Rule
from worldstereo_jax.interop.wan_vae_names import wan_vae_table
from worldstereo_jax.models.clip_vision import CLIPVisionConfig
from worldstereo_jax.models.depth_anything import DepthAnythingConfig
from worldstereo_jax.models.dinov2 import Dinov2Config
from worldstereo_jax.models.umt5 import UMT5Config
from worldstereo_jax.models.wan_vae import WanVAEConfig

LIST = Path(__file__).with_name("official_tensors.txt")


def listed(section: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a section of the list, {0-3} written out."""
    text = LIST.read_text().split(f"[{section}]\n")[1].split("\n[")[0]
    tensors = {}
    for line in text.splitlines():
        pattern, size = line.split()
        shape = tuple(int(n) for n in size.split("x"))
        numbers = re.search(r"\{(.*)\}", pattern)
        if numbers is None:
            tensors[pattern] = shape
            continue
        for run in numbers[1].split(","):
            first, _, last = run.partition("-")
            for number in range(int(first), int(last or first) + 1):
                name = pattern.replace(numbers[0], str(number))
                assert name not in tensors
                tensors[name] = shape
    return tensors


@pytest.mark.parametrize(
    ("section", "shapes"),
    [
        ("wan_vae", lambda: wan_vae_table(WanVAEConfig()).official_shapes()),
        ("umt5_xxl", lambda: umt5_table(UMT5Config()).official_shapes()),
        ("clip_vit_h", lambda: clip_vision_table(CLIPVisionConfig()).official_shapes()),
        ("dinov2_base", lambda: dinov2_table(Dinov2Config()).official_shapes()),
        ("depth_anything_base", lambda: depth_anything_table(DepthAnythingConfig())
         .official_shapes()),
        ("wan_t2v_1.3b", lambda: official_shapes(get_preset("wan_t2v_1.3b"))),
        ("wan_i2v_14b", lambda: official_shapes(get_preset("wan_14b"))),
    ],
)  # fmt: skip
def test_the_full_model_has_exactly_the_official_tensors(section, shapes):
    expected = listed(section)
    assert len(expected) > 100
    assert shapes() == expected


def test_a_path_without_a_rule_or_with_two_is_refused():
    with pytest.raises(KeyError, match="0 rules for a/kernel"):
        match_places({"a/kernel": (1, 2)}, (Rule("b.weight", "b/kernel", MATRIX),))
    two = (Rule("x", "a/kernel", SAME), Rule("y", "a/kernel", SAME))
    with pytest.raises(KeyError, match="2 rules for a/kernel"):
        match_places({"a/kernel": (1, 2)}, two)


def test_faults_name_tensor_and_file():
    table = dinov2_table(Dinov2Config(hidden_size=4, num_layers=1, num_heads=1, image_size=14))
    tensors = {name: np.zeros(shape) for name, shape in table.official_shapes().items()}
    with pytest.raises(InputError, match=r"d\.safetensors: tensor layernorm\.bias is missing"):
        table.params(
            {k: v for k, v in tensors.items() if k != "layernorm.bias"}, source="d.safetensors"
        )
    tensors["layernorm.bias"] = np.zeros(5)
    with pytest.raises(InputError, match=r"layernorm\.bias has shape \[5\], expected \[4\]"):
        table.params(tensors)
    del tensors["layernorm.bias"]
    with pytest.raises(InputError, match=r"tensor other belongs to no parameter"):
        table.params({**tensors, "other": np.zeros(1)})
