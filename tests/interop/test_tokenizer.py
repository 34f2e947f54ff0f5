"""Prompts to tokens with a small vocabulary in the official file format.

The real vocabulary does not ship with the package: `experiments/tokenizer_parity.py` compares it
with transformers and sentencepiece where a copy lies. Format, rules and padding are the same here.
"""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.tokenizer import Tokenizer, clean_prompt

TEXTS = [
    "A vibrant sunset paints the sky in hues of orange and yellow over a tranquil blue ocean.",
    "White waves crash against a rocky shoreline, creating a dynamic contrast of light.",
    "The camera orbits a dining table; chairs, a lamp and a window are seen from every side.",
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A unigram vocabulary trained on a few sentences, with the end mark of the T5 family."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_prompts_are_padded_and_cut_with_their_end_mark(vocabulary):
    tokens = Tokenizer(vocabulary)([TEXTS[0], "sky", ""], length=12)
    assert tokens.ids.dtype == np.int32
    assert tokens.ids.shape == tokens.valid.shape == (3, 12)
    assert tokens.valid[0].all()
    assert tokens.ids[0, -1] == 1
    short = tokens.valid[1].sum()
    assert tokens.ids[1, short - 1] == 1
    assert not tokens.ids[1, short:].any()
    np.testing.assert_array_equal(tokens.valid[2], np.arange(12) < 1)
    assert Tokenizer(vocabulary / "tokenizer.json")([TEXTS[0]]).ids.shape == (1, 512)


def test_prompts_are_cleaned():
    assert clean_prompt("  a &amp;amp; b\n\t c ") == "a & b c"
    assert clean_prompt("schÃ¶n") == "schön"


def test_faults_name_the_file(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.json: no such tokenizer file"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a readable tokenizer"):
        Tokenizer(tmp_path)
    plain = tokenizers.Tokenizer(models.Unigram([("a", 0.0)], unk_id=0))
    plain.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="no padding token <pad>"):
        Tokenizer(tmp_path)


def test_equals_transformers(vocabulary, shared_dir):
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    theirs = transformers.T5TokenizerFast(
        tokenizer_file=str(vocabulary / "tokenizer.json"), extra_ids=0
    )
    prompts = [*TEXTS, "", "日本 unknown §§ letters", "a  b   c"]
    for file in sorted((shared_dir / "data").rglob("*.json")):
        fields = json.loads(file.read_text())
        if isinstance(fields, dict):
            prompts += [text for key, text in fields.items() if "caption" in key or key == "prompt"]
    assert len(prompts) > 10
    for length in (40, 512):
        expected = theirs(
            [clean_prompt(text) for text in prompts], padding="max_length", max_length=length,
            truncation=True, return_tensors="np",
        )  # fmt: skip
        found = Tokenizer(vocabulary)(prompts, length)
        np.testing.assert_array_equal(found.ids, expected.input_ids)
        np.testing.assert_array_equal(found.valid, expected.attention_mask.astype(bool))
