"""The derived tokenizer against Harmony's own encoding."""

from __future__ import annotations

import pytest
from openai_harmony import HarmonyEncodingName, load_harmony_encoding
from tokenizers import Tokenizer

from serving.engine.checkpoints import harmony_tokenizer
from serving.engine.checkpoints.harmony_tokenizer import SPECIAL_IDS, SPECIAL_TOKENS

TEXTS = (
    "",
    " ",
    "What is the capital of France?",
    "HTTPServer's don't we'LL I'D",
    "  two  spaces,\ttabs\t\tand\n\nlines \n \r\n end   ",
    "1234567890 3.14159 10,000 0x1F",
    '{"city": "Paris", "country": "France", "n": [1, 2, 3]}',
    "def f(x):\n    return x ** 2  # comment\n\n\n",
    "Grüße, naïve façade, Œuvre, I’m sorry",
    "日本語のテキストと中文文本和한국어",
    "עברית العربية हिन्दी ไทย Ελληνικά Русский",
    "👩‍👩‍👧‍👦 🏳️‍🌈 😀😃 é ﷽",
    "a" * 300 + "ab" * 100,
    "\x00\x01\x7f\u200b\ufeff\u00a0\u2028",
    "https://example.org/a/b?c=d&e=%20f#g //\n/*---*/",
    "<|start|>user<|message|>Hi<|end|><|return|><|call|><|channel|>final <|constrain|>json",
    "<|reserved_200017|><|endoftext|><|startoftext|><|not_special|>",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return harmony_tokenizer.build()


def test_encodes_as_harmony_does(tokenizer: Tokenizer) -> None:
    """Every text becomes the same token ids, markers included, and comes back unchanged."""
    harmony = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)

    for text in (*TEXTS, *(a + b for a in TEXTS for b in TEXTS)):
        token_ids = tokenizer.encode(text).ids
        assert token_ids == harmony.encode(text, allowed_special="all"), repr(text)
        assert tokenizer.decode(token_ids, skip_special_tokens=False) == text


def test_special_tokens_have_harmonys_ids() -> None:
    """The markers' ids are Harmony's; the last of the published file, <|endofprompt|>, is one Harmony only reserves."""
    harmony = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)

    for text in SPECIAL_TOKENS[:-1]:
        assert harmony.encode(text, allowed_special="all") == [SPECIAL_IDS[text]]
    assert SPECIAL_IDS["<|endofprompt|>"] == 200_018
