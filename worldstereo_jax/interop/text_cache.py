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
        model: names the encoder; states of one are never taken for another's.
        make_encode: called only when a prompt is not there, and at most once.
    """

    def __init__(
        self, folder: str | os.PathLike[str], model: str, make_encode: Callable[[], Encode]
    ) -> None:
        self._folder = Path(folder)
        self._model = model
        self._make_encode = make_encode
        self._encode: Encode | None = None

    def __call__(self, prompts: Sequence[str]) -> Float[Array, "b l c"]:
        """Hidden states of prompts, float32, in their order.

        Raises:
            InputError: for a damaged file of the cache, which it names.
        """
        missing = [text for text in dict.fromkeys(prompts) if not self._path(text).exists()]
        if missing:
            self._encode = self._encode or self._make_encode()
            for text, hidden in zip(missing, self._encode(missing), strict=True):
                write_safetensors(self._path(text), {"hidden": np.asarray(hidden)})
        return jnp.stack([jnp.asarray(self._read(text)) for text in prompts])

    def _path(self, text: str) -> Path:
        key = f"{self._model}\n{clean_prompt(text)}".encode()
        return self._folder / f"{hashlib.sha256(key).hexdigest()[:32]}.safetensors"

    def _read(self, text: str) -> np.ndarray:
        return SafetensorsFile(self._path(text))["hidden"]
