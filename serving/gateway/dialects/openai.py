"""OpenAI: what chat, completions and embeddings have in common: chunks, their usage, and how their streams break off."""

from __future__ import annotations

import msgspec

from serving.errors import ApiError, InvalidRequest
from serving.gateway.dialects.dialect import Body, ChunkStream
from serving.gateway.dialects.shapes import FIRST_CHUNK
from serving.gateway.http.bodies import openai_body
from serving.gateway.nouns import Usage

DONE = b"data: [DONE]\n\n"


class Details(msgspec.Struct):
    cached_tokens: int | None = 0
    reasoning_tokens: int | None = 0


class ChatCounts(msgspec.Struct):
    """`UsageInfo`: chat, completions, embeddings."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens or 0,
            cached_prompt_tokens=(self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0,
            reasoning_tokens=(self.completion_tokens_details and self.completion_tokens_details.reasoning_tokens) or 0,
        )


def check_streaming(body: Body, kept: Body) -> None:
    """Options of a stream need a stream."""
    if "stream_options" in kept and kept.get("stream") is not True:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )


def taken_stops(kept: Body) -> tuple[str, ...]:
    """A body's stop strings, taken out: the gateway searches the text that the client sees, which the engine cannot (RLY-22)."""
    stops: str | list[str] = kept.pop("stop", ())
    return (stops,) if isinstance(stops, str) else tuple(stops)


def _error_event(error: ApiError, request_id: str, events_sent: int) -> bytes:
    # Named, for clients that go by the name alone; openai-python goes by the data.
    return b"event: error\ndata: " + openai_body(error, request_id) + b"\n\n" + DONE


CHUNKS = ChunkStream(opening=FIRST_CHUNK, endings=(DONE,), error_event=_error_event)
