"""Prompts to token numbers, from a tokenizer.json as it lies in the base model's folder."""

import html
import os
import re
import typing
from collections.abc import Sequence
from pathlib import Path

import ftfy
import numpy as np
import tokenizers

from worldstereo_jax.array_types import Bool, Int, ndarray
from worldstereo_jax.errors import InputError

PROMPT_TOKENS = 512
PADDING = "<pad>"


class PromptTokens(typing.NamedTuple):
    """Token numbers of prompts, padded to one length.

    Attributes:
        ids: int32 [b, l].
        valid: True for the prompt's own tokens, its end mark included [b, l].
    """

    ids: Int[ndarray, "b l"]
    valid: Bool[ndarray, "b l"]


class Tokenizer:
    """A vocabulary with its rules.

    Args:
        path: a tokenizer.json, or the folder that holds it.

    Raises:
        InputError: when it is missing, unreadable, or has no padding token.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise InputError(f"{file}: no such tokenizer file")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        # The library raises bare Exception for whatever is wrong with a file.
        except Exception as error:
            raise InputError(f"{file}: not a readable tokenizer.json ({error})") from error
        padding = self._tokenizer.token_to_id(PADDING)
        if padding is None:
            raise InputError(f"{file}: has no padding token {PADDING}")
        self._padding = padding

    @property
    def vocab_size(self) -> int:
        """Tokens known, added ones included."""
        return self._tokenizer.get_vocab_size()

    def __call__(self, prompts: Sequence[str], length: int = PROMPT_TOKENS) -> PromptTokens:
        """Clean and encode prompts; longer ones lose their end but keep the end mark."""
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(
            length=length, pad_id=self._padding, pad_token=PADDING, direction="right"
        )
        encoded = self._tokenizer.encode_batch([clean_prompt(text) for text in prompts])
        ids = np.array([one.ids for one in encoded], np.int32).reshape(-1, length)
        valid = np.array([one.attention_mask for one in encoded], bool).reshape(-1, length)
        return PromptTokens(ids, valid)


def clean_prompt(text: str) -> str:
    """Text as the model was trained on: broken encodings mended, entities and spaces resolved."""
    unescaped = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", unescaped).strip()
