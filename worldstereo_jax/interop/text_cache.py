"""Prompts to what the video model receives, kept on disk so that the text encoder runs once.

The text encoder has 5.7 B parameters and is needed for a second per clip: with a cache, a prompt
seen before needs neither it nor its weights in memory.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.safetensors_io import SafetensorsFile, write_safetensors
from worldstereo_jax.interop.tokenizer import PROMPT_TOKENS, Tokenizer, clean_prompt
from worldstereo_jax.models.umt5 import UMT5Config, UMT5Encoder, zero_past_prompt
from worldstereo_jax.sampling.precision import jit_at, transformer_precision

Encode = Callable[[Sequence[str]], Float[Array, "b l c"]]
"""Prompts to hidden states, 0 past each prompt's end."""


def make_text_encoder(
    tokenizer: Tokenizer, params: PyTree, config: UMT5Config, *, length: int = PROMPT_TOKENS
) -> Encode:
    """A function from prompts to the hidden states that the video model receives, float32.

    Args:
        tokenizer: of the same model.
        params: of `UMT5Encoder(config)`.
        config: sizes.
        length: tokens of every result; the official 512.
    """
    run = compiled_encoder(config)

    def encode(prompts: Sequence[str]) -> Float[Array, "b l c"]:
        tokens = tokenizer(prompts, length)
        return run(params, jnp.asarray(tokens.ids), jnp.asarray(tokens.valid))

    return encode


def compiled_encoder(config: UMT5Config) -> Callable[[PyTree, Array, Array], Array]:
    """From parameters, token ids and which of them are the prompt's to states, 0 past its end.

    Products of an encoder in float32 are exact.
    """

    def run(params: PyTree, ids: Array, valid: Array) -> Array:
        hidden = UMT5Encoder(config).apply({"params": params}, ids, valid)
        return zero_past_prompt(jnp.asarray(hidden), valid)

    return jit_at(transformer_precision(config.dtype), run)


class TextCache:
    """Hidden states of prompts in a folder, one safetensors file each.

    Args:
        folder: where they are kept; made when it is missing.
        encoder: names the encoder by its content (`identity.encoder_identity`); states of one are
            never taken for another's. None for a model that has no encoder at hand: it takes the
            states of the one encoder that wrote all prompts asked for.
        dtype: that the encoder computes in; states of one are not another's.
        make_encode: called only when a prompt is not there, and at most once.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        encoder: str | None,
        dtype: str,
        make_encode: Callable[[], Encode],
    ) -> None:
        self._folder = Path(folder)
        self._kind = None if encoder is None else _short_hash(f"{encoder} {dtype}")
        self._dtype = dtype
        self._make_encode = make_encode
        self._encode: Encode | None = None

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The prompts whose states are not there, each once.

        Raises:
            InputError: when no encoder is named and those of several have written these prompts.
        """
        distinct = list(dict.fromkeys(prompts))
        if self._kind is None:
            self._kind = self._only_kind(distinct)
        if self._kind is None:
            return distinct
        return [text for text in distinct if not self._path(text, self._kind).exists()]

    def __call__(self, prompts: Sequence[str]) -> Float[Array, "b l c"]:
        """Hidden states of prompts, float32, in their order.

        Raises:
            InputError: for a damaged file of the cache, which it names; and as `missing` does.
        """
        missing = self.missing(prompts)
        if missing:
            self._encode = self._encode or self._make_encode()
            if self._kind is None:
                return self._encode(prompts)
            for text, hidden in zip(missing, self._encode(missing), strict=True):
                write_safetensors(self._path(text, self._kind), {"hidden": np.asarray(hidden)})
        assert self._kind is not None
        paths = [self._path(text, self._kind) for text in prompts]
        return jnp.stack([jnp.asarray(SafetensorsFile(path)["hidden"]) for path in paths])

    def _path(self, text: str, kind: str) -> Path:
        return self._folder / f"{self._start(text)}{kind}.safetensors"

    def _start(self, text: str) -> str:
        return f"{_short_hash(clean_prompt(text))}-{self._dtype}-"

    def _only_kind(self, prompts: Sequence[str]) -> str | None:
        """The encoder that has written all of the prompts; None when there is none."""
        found: set[str] | None = None
        for text in prompts:
            start = self._start(text)
            kinds = {path.stem[len(start) :] for path in self._folder.glob(f"{start}*.safetensors")}
            found = kinds if found is None else found & kinds
        if found is not None and len(found) > 1:
            raise InputError(
                f"{self._folder}: holds states of these prompts by {len(found)} text encoders, and "
                "the base model has none that would tell which are its own; keep those of one in a "
                "folder"
            )
        return next(iter(found)) if found else None


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
