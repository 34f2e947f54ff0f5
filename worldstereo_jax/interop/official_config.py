"""Reading official config.json files: every key is known, none is dropped in silence.

A key is translated, or fixed to the one value that this project computes, or known to change
nothing in what is computed; any other is an error that names it.
"""

import typing
from collections.abc import Mapping

from worldstereo_jax.errors import InputError, nearest_hint

# Provenance, and settings of text generation and training that every config of transformers holds.
_WITHOUT_EFFECT = frozenset(
    [
        "_name_or_path",
        "_class_name",
        "_diffusers_version",
        "_commit_hash",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "_output_attentions",
        "add_cross_attention",
        "architectures",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tie_word_embeddings",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
        "initializer_factor",
        "initializer_range",
        "use_cache",
    ]
)


class Keys(typing.NamedTuple):
    """What the keys of a kind of config mean.

    Attributes:
        translated: official key to our field.
        fixed: official key to the value it must have.
        ignored: keys without effect on what is computed, beside those that all configs share.
    """

    translated: Mapping[str, str]
    fixed: Mapping[str, typing.Any] = {}
    ignored: str = ""


def translate(
    values: Mapping[str, typing.Any], keys: Keys, *, source: str
) -> dict[str, typing.Any]:
    """Our fields from an official config; lists become tuples.

    Keys that are absent are left to our defaults, which are the libraries'.

    Raises:
        InputError: for an unknown key, or a fixed one with another value, by name.
    """
    known = [*keys.translated, *keys.fixed, *keys.ignored.split()]
    fields = {}
    for name, value in values.items():
        if name in keys.translated:
            fields[keys.translated[name]] = tuple(value) if isinstance(value, list) else value
        elif name in keys.fixed:
            if value != keys.fixed[name]:
                raise InputError(
                    f"{source}: {name} is {value!r}, but only {keys.fixed[name]!r} is supported"
                )
        elif name not in known and name not in _WITHOUT_EFFECT:
            raise InputError(f"{source}: unknown key {name!r}: {nearest_hint(name, known)}")
    return fields


def required(fields: Mapping[str, typing.Any], name: str, *, source: str) -> typing.Any:
    """A field that has no default.

    Raises:
        InputError: when it is missing.
    """
    if name not in fields:
        raise InputError(f"{source}: key {name!r} is missing")
    return fields[name]


WHOLE, NUMBER, FLAG, TEXT = "a whole number above 0", "a number", "true or false", "a text"
PAIRS, OBJECT = "a list of pairs of whole numbers", "an object"


def _is_whole(value: typing.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_IS_OF_KIND: dict[str, typing.Callable[[typing.Any], bool]] = {
    WHOLE: _is_whole,
    NUMBER: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    FLAG: lambda value: isinstance(value, bool),
    TEXT: lambda value: isinstance(value, str),
    PAIRS: lambda value: (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(p, list) and len(p) == 2 and all(map(_is_whole, p)) for p in value)
    ),
    OBJECT: lambda value: isinstance(value, dict),
}


def check_kinds(
    values: Mapping[str, typing.Any], kinds: Mapping[str, str], *, optional: str = "", source: str
) -> None:
    """Refuse a value of another kind than its key wants; absent keys are left to their defaults.

    Args:
        values: a config.
        kinds: key to one of the kinds above.
        optional: keys that may be null.
        source: what to call the config in messages.

    Raises:
        InputError: for such a value, by its key.
    """
    for name, kind in kinds.items():
        value = values.get(name)
        if name not in values or (value is None and name in optional.split()):
            continue
        if not _IS_OF_KIND[kind](value):
            raise InputError(f"{source}: {name} is {value!r}, expected {kind}")
