"""Embedding answers: only whole, and not decoded but for what stands around the vectors."""

from __future__ import annotations

import msgspec

from serving.gateway.answers.shaper import Shaper


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _Embeddings(msgspec.Struct):
    object: str
    data: msgspec.Raw
    model: str
    usage: _Usage


class EmbeddingShaper(Shaper):
    """A list of vectors in OpenAI's form."""

    def whole(self, body: bytes) -> bytes:
        try:
            return msgspec.json.encode(msgspec.json.decode(body, type=_Embeddings))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return body
