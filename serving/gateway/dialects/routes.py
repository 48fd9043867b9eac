"""Routes: what this plane answers, in which dialect, and which of them reach an engine."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Dialect(StrEnum):
    """Whose shapes errors and streams take."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class StreamKind(StrEnum):
    """How a route streams, or that it never does."""

    NONE = "none"
    #: `data: {chunk}` … `data: [DONE]`, usage in every chunk when asked for.
    CHUNKS = "chunks"
    #: OpenAI's Responses: typed events, usage in the last one.
    RESPONSES = "responses"
    #: Anthropic's Messages: typed events, usage in the first and the last one.
    MESSAGES = "messages"


class EngineRoute(msgspec.Struct, frozen=True):
    """A POST that one engine answers."""

    path: str
    dialect: Dialect = Dialect.OPENAI
    streams: StreamKind = StreamKind.NONE
    #: Whether the engine computes tokens that are billed; tokenising alone is not.
    is_billed: bool = True
    #: Whether the engine's request takes `cache_salt`, which keeps tenants' prefix caches apart.
    takes_cache_salt: bool = True


CHAT = EngineRoute("/v1/chat/completions", streams=StreamKind.CHUNKS)
COMPLETIONS = EngineRoute("/v1/completions", streams=StreamKind.CHUNKS)
RESPONSES = EngineRoute("/v1/responses", streams=StreamKind.RESPONSES)
EMBEDDINGS = EngineRoute("/v1/embeddings")
MESSAGES = EngineRoute("/v1/messages", Dialect.ANTHROPIC, StreamKind.MESSAGES)
COUNT_TOKENS = EngineRoute("/v1/messages/count_tokens", Dialect.ANTHROPIC, is_billed=False, takes_cache_salt=False)
TOKENIZE = EngineRoute("/tokenize", is_billed=False, takes_cache_salt=False)

ENGINE_ROUTES: dict[str, EngineRoute] = {
    route.path: route for route in (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, MESSAGES, COUNT_TOKENS, TOKENIZE)
}


def dialect_of(path: str) -> Dialect:
    """The dialect a path's errors are written in."""
    return Dialect.ANTHROPIC if path.startswith(MESSAGES.path) else Dialect.OPENAI
