"""Conversation: what an engine reads of a body, in the order in which it reads it, cut into blocks.

Engines keep what they have computed of a prompt. The next turn of a conversation begins as the one before, and so do its blocks
here: from them a router knows which replica has most of it. The bytes are the gateway's own, in one spelling for each message
whatever its client's is; no template is rendered and nothing is tokenised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import msgspec

from serving.gateway.dialects.dialect import Body

#: Bytes of a block: about 256 tokens of English. A shorter conversation has none: it is computed in milliseconds.
BLOCK_BYTES = 1024

#: Fields that change how a prompt opens, before its first message: system messages tell of tools and efforts.
_OPENING = (
    "tools",
    "system",
    "instructions",
    "reasoning_effort",
    "reasoning",
    "thinking",
    "output_config",
    "chat_template_kwargs",
)
#: A mark that clients of Anthropic's API move from turn to turn; engines do not read it.
_MARK = "cache_control"

_encoder = msgspec.json.Encoder(order="deterministic")


def blocks(parts: Iterable[Any], salt: str) -> tuple[int, ...]:
    """A hash of each whole block of these parts and of all before it: equal ones have equal beginnings under the same salt.

    The same in every gateway, 64 bits, and keyed: no client can foresee one.
    """
    text = b"".join(_encoder.encode(part) for part in parts)
    if len(text) < BLOCK_BYTES:
        return ()
    hashed, so_far = [], blake2b(salt.encode(), digest_size=8).digest()
    for start in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES):
        so_far = blake2b(text[start : start + BLOCK_BYTES], key=so_far, digest_size=8).digest()
        hashed.append(int.from_bytes(so_far))
    return tuple(hashed)


def of_turns(field: str, kept: Body) -> Iterator[Any]:
    """A body whose `field` is a list of messages or items, or a text that is the first of them."""
    yield {name: _unmarked(kept[name]) for name in _OPENING if name in kept}
    turns = kept[field]
    if isinstance(turns, str):
        yield {"role": "user", "content": turns}
        return
    for turn in turns:
        content = getattr(turn, "content", None)
        if isinstance(content, list) and content and isinstance(content[0], dict):
            yield turn.role, _unmarked(content)
        else:
            yield turn


def of_prompt(kept: Body) -> Iterator[Any]:
    """A body with a prompt: text or token ids. Of several prompts the first."""
    prompt = kept["prompt"]
    if isinstance(prompt, list) and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        yield prompt
    else:
        yield from prompt


def _unmarked(blocks: Any) -> Any:
    if not isinstance(blocks, list):
        return blocks
    return [
        {key: value for key, value in block.items() if key != _MARK} if isinstance(block, dict) else block
        for block in blocks
    ]
