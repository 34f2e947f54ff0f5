"""Our tokenizer with a real vocabulary beside transformers and sentencepiece.

    pip install -e ".[parity]" && python -m experiments.tokenizer_parity path/to/tokenizer.json

The file is the base model's `tokenizer/tokenizer.json` (UMT5: 256,300 tokens). Prompts are captions
in English, the base model's negative prompt, sentences in twelve scripts, and random strings
over Latin, Greek, Cyrillic, Han, kana, Hangul, Arabic, Devanagari, Thai and emoji. Three readings:
`T5TokenizerFast` of transformers over the same file, padded and cut as the official pipeline does
it; and sentencepiece over a model put together from the file's pieces and scores, which shares no
code with either and reads no rule of the file.

Expected: no difference to transformers; to sentencepiece none but ties, where two ways to cut a run
of one letter have the same score. Exits with 1 where transformers differs.

Record: section "The vocabulary of the base model" of `RESULTS.md`.
"""

import argparse
import hashlib
import importlib
import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.interop.tokenizer import PROMPT_TOKENS, Tokenizer, clean_prompt

RESULTS = Path(__file__).parent / "RESULTS.md"
TITLE = "The vocabulary of the base model"
LENGTHS = (40, PROMPT_TOKENS)
WHOLE = 4096
SPECIAL = ("<pad>", "</s>", "<s>", "<unk>", "<extra_id_")
CAPTIONS = (
    "A vibrant sunset paints the sky in hues of orange and yellow over a tranquil blue ocean.",
    "The camera orbits a dining table; chairs, a lamp and a window are seen from every side.",
    "A narrow cobblestone alley, 35mm film, f/1.8, photo-realistic (8K) -- golden hour!",
    "An indoor scene:\n\n\tsofa, TV & shelves;   the camera pans left, then right... then stops.",
)
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的"
)
SENTENCES = (
    "古い京都の路地を、カメラがゆっくりと進む。",
    "카메라가 방을 천천히 돌아봅니다.",
    "Камера медленно движется по залу музея.",
    "Η κάμερα κινείται αργά μέσα στο δωμάτιο.",
    "تتحرك الكاميرا ببطء داخل الغرفة.",
    "המצלמה נעה לאט בתוך החדר.",
    "कैमरा धीरे-धीरे कमरे में घूमता है।",
    "กล้องเคลื่อนที่ช้า ๆ ไปรอบห้อง",
    "Máy quay di chuyển chậm rãi quanh căn phòng.",
    "Die Kamera fährt über Brücken, Straßen und Türme; naïve Café-Gäste schauen zu.",
    "កាមេរ៉ាផ្លាស់ទីយឺតៗ",
    "კამერა ნელა მოძრაობს ოთახში.",
    "Տեսախցիկը դանդաղ շարժվում է։",
)
ODD = (
    "",
    "a",
    "don't stop — “quotes” … ½ ① ﬁ ligature",
    "schÃ¶n &amp;amp; gro&szlig;",
    "emoji 😀👍🏽 🏳️‍🌈",
    "<extra_id_0> token </s> inside <pad> [eod]",
    "x" * 3000,
    "word " * 700,
)
BLOCKS = (
    (0x20, 0x7F),
    (0xA1, 0x24F),
    (0x391, 0x3CA),
    (0x400, 0x500),
    (0x4E00, 0x9FA6),
    (0x3041, 0x3097),
    (0xAC00, 0xD7A4),
    (0x621, 0x64B),
    (0x905, 0x93A),
    (0xE01, 0xE2F),
    (0x1F300, 0x1F600),
    (0x20, 0x21),
)


def main() -> None:
    """Encode, compare and write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tokenizer", type=Path, help="the base model's tokenizer.json")
    parser.add_argument("--source", default="", help="where the file is from, for the record")
    parser.add_argument("--random", type=int, default=1000, help="random strings to add")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prompts = [*CAPTIONS, NEGATIVE, *SENTENCES, *ODD]
    prompts += random_strings(options.random, options.seed)
    ours = Tokenizer(options.tokenizer)
    rows = [
        (
            f"transformers, {length} tokens",
            str(len(prompts)),
            str(len(unlike_transformers(options.tokenizer, ours, prompts, length))),
        )
        for length in LENGTHS
    ]
    # Marks are words to sentencepiece, which knows no tokens that stand in a text.
    plain = [text for text in prompts if not any(mark in text for mark in SPECIAL)]
    unlike, worse = unlike_sentencepiece(options.tokenizer, ours, plain)
    rows.append(("sentencepiece, whole prompts", str(len(plain)), str(unlike)))
    table = Table(("beside", "prompts", "encoded differently"), rows)
    print(table.markdown())
    data = options.tokenizer.read_bytes()
    source = f" ({options.source})" if options.source else ""
    facts = (
        f"{ours.vocab_size:,} tokens{source}, SHA-256 `{hashlib.sha256(data).hexdigest()}`. "
        f"Of what sentencepiece cuts otherwise, {worse} by scores that are not a tie."
    )
    command = (
        "python -m experiments.tokenizer_parity tokenizer.json "
        f"--random {options.random} --seed {options.seed}"
    )
    write_section(RESULTS, TITLE, [facts, table], command=command)
    if any(int(row[2]) for row in rows[:-1]):
        sys.exit(1)


def random_strings(count: int, seed: int) -> list[str]:
    """Strings of 1 to 199 letters from one to all blocks [count]."""
    rng = np.random.default_rng(seed)
    strings = []
    for _ in range(count):
        blocks = rng.choice(len(BLOCKS), rng.integers(1, len(BLOCKS) + 1))
        picked = rng.choice(blocks, rng.integers(1, 200))
        strings.append("".join(chr(rng.integers(*BLOCKS[block])) for block in picked))
    return strings


def unlike_transformers(
    file: Path, ours: Tokenizer, prompts: Sequence[str], length: int
) -> list[str]:
    """Prompts whose numbers or padding differ."""
    theirs = importlib.import_module("transformers").T5TokenizerFast(tokenizer_file=str(file))
    expected = theirs(
        [clean_prompt(text) for text in prompts],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="np",
    )
    found = ours(prompts, length)
    same = (found.ids == expected.input_ids).all(1)
    same &= (found.valid == expected.attention_mask.astype(bool)).all(1)
    return [text for text, equal in zip(prompts, same, strict=True) if not equal]


def unlike_sentencepiece(file: Path, ours: Tokenizer, prompts: Sequence[str]) -> tuple[int, int]:
    """How many prompts are cut otherwise, and how many of them by another score."""
    vocabulary = json.loads(file.read_text())["model"]["vocab"]
    theirs = sentencepiece_model(vocabulary)
    scores = np.array([score for _, score in vocabulary])
    unlike = worse = 0
    for text in prompts:
        tokens = ours([text], WHOLE)
        found = tokens.ids[0][tokens.valid[0]][:-1]
        expected = np.array(theirs.encode(clean_prompt(text)), int)
        if not np.array_equal(found, expected):
            unlike += 1
            worse += not np.isclose(scores[found].sum(), scores[expected].sum(), rtol=1e-6)
    return unlike, worse


def sentencepiece_model(vocabulary: Sequence[tuple[str, float]]) -> typing.Any:
    """A unigram model of these pieces that changes nothing but spaces."""
    messages = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    model = messages.ModelProto()
    kinds = {"<pad>": 3, "</s>": 3, "<s>": 3, "<unk>": 2}
    for number, (piece, score) in enumerate(vocabulary):
        # No piece may be empty; such a one of a tokenizer.json never matches anything.
        added = model.pieces.add(piece=piece or f"\ue000{number}", score=score)
        added.type = 4 if piece.startswith("<extra_id_") else kinds.get(piece, 1)
    model.trainer_spec.model_type = 1
    model.trainer_spec.pad_id, model.trainer_spec.eos_id = 0, 1
    model.trainer_spec.bos_id, model.trainer_spec.unk_id = 2, 3
    model.normalizer_spec.name = "identity"
    sentencepiece = importlib.import_module("sentencepiece")
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


if __name__ == "__main__":
    main()
