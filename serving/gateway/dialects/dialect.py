"""Dialect: all that this plane knows of one API, in one object.

Which fields a request may have, what the gateway sets itself, how answers say what they cost, how a stream ends and how it
carries an error. Everything else asks the call's dialect instead of comparing paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from serving.errors import ApiError
from serving.gateway.answers.asked import Asked
from serving.gateway.answers.reasoning import Keeper
from serving.gateway.answers.shaper import Assembly, Counted, Shaper
from serving.gateway.dialects.fields import Table
from serving.gateway.http.bodies import openai_body
from serving.gateway.nouns import Usage

#: A decoded JSON object: the body as it was sent, or the fields of it that are kept.
Body = dict[str, Any]


class Counts(Protocol):
    """A usage object as one API's answers spell it; decoded from JSON."""

    def usage(self) -> Usage:
        """The same in this plane's words."""
        ...


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """How an API streams."""

    #: What the first event of each of its streams looks like; a stream that begins otherwise is none.
    opening: re.Pattern[bytes]
    #: What a complete stream ends with; one that stops before has failed.
    endings: tuple[bytes, ...]
    #: The bytes that end a stream which failed: (error, request id, events sent so far) → an event that a client raises on.
    error_event: Callable[[ApiError, str, int], bytes]

    def has_output(self, block: bytes) -> bool:
        """Do whole events hold something that the engine made? Its first token comes with the first of them."""
        return bool(block)


class ChunkStream(Stream, frozen=True, kw_only=True):
    """`data: {chunk}` … `data: [DONE]`: usage in every chunk when asked for, and in a last one of its own."""


class EventStream(Stream, frozen=True, kw_only=True):
    """Typed events, usage in the last one."""

    #: Bytes that stand in each event that carries text, and bytes in those of them whose text is no token's.
    text_event: bytes
    no_text: bytes | None = None
    #: Name of the event that opens a part of the answer, and bytes in those of them that open a call of a tool.
    part_event: bytes
    tool_part: bytes
    #: Names of the events after which nothing but usage follows.
    last_events: tuple[bytes, ...]
    #: Name of an event that tells the prompt's tokens at the start, where there is one.
    first_event: bytes | None = None

    def has_output(self, block: bytes) -> bool:
        # Responses' first events come before anything is computed.
        return self.part_event in block


def _no_rule(body: Body, kept: Body) -> None:
    return None


def _nothing(kept: Body) -> None:
    return None


def _leaves_nothing_out(kept: Body) -> Iterable[str]:
    return ()


def _recalls_nothing(kept: Body, keeper: Keeper) -> None:
    return None


def _asks_nothing(kept: Body) -> Asked:
    return Asked()


def _one_prompt(kept: Body) -> int:
    return 1


def _no_conversation(kept: Body) -> Iterable[Any]:
    return ()


class Dialect(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One API: a POST that one engine answers."""

    path: str
    #: What it does, in a sentence of the API's document.
    summary: str
    #: Every request field, and what happens to it.
    fields: Table
    #: The least that a whole answer holds.
    answer: type[msgspec.Struct]
    #: How answers say what they cost; None where the engine computes no tokens that are billed.
    counts: type[Counts] | None
    #: None where answers never stream.
    stream: Stream | None = None
    #: Rules across fields, of the body as sent and the fields kept; raises InvalidRequest and its kinds.
    check: Callable[[Body, Body], None] = _no_rule
    #: Puts clients' words for the same thing into the engine's, takes out what cannot run here and returns its names.
    adapt: Callable[[Body], Iterable[str]] = _leaves_nothing_out
    #: Puts the reasoning back that a client left out, or carries sealed.
    recall: Callable[[Body, Keeper], None] = _recalls_nothing
    #: Sets what the gateway decides for every call.
    complete: Callable[[Body], None] = _nothing
    #: Takes out of the body what the gateway does itself, and says what else the answer depends on.
    ask: Callable[[Body], Asked] = _asks_nothing
    #: Fields of a request that its answer repeats as they were sent.
    echoed: tuple[str, ...] = ()
    #: Makes an engine's answers the API's.
    shaper: Callable[[Asked, Counted], Shaper] = Shaper
    #: Puts a whole answer together from a stream; None where an engine's whole answers will do.
    assembly: Callable[[], Assembly] | None = None
    #: Prompts in one request.
    prompts: Callable[[Body], int] = _one_prompt
    #: What an engine reads, in its order: what opens a prompt, then turn after turn, so that a conversation's next request begins
    #: as this one. Empty where engines keep no prefix of it.
    conversation: Callable[[Body], Iterable[Any]] = _no_conversation
    #: The field that holds the prompt, for errors about its length.
    prompt_field: str = "messages"
    #: What the API says of a prompt that exceeds the context; `prompt` may be `at least 9`. OpenAI's own sentence, and its code,
    #: for which langchain-openai looks in the text.
    too_long: str = (
        "This model's maximum context length is {limit} tokens. However, your messages resulted in {prompt} tokens."
        " Please reduce the length of the messages. (context_length_exceeded)"
    )
    #: Fields in which a client limits the output of one sequence, the one that counts first.
    limit_fields: tuple[str, ...] = ()
    #: The field in which the gateway sets the model's default limit where the client gives none; None where it never does.
    default_limit_field: str | None = None
    #: Output tokens of one sequence where the client gives no limit, at most, by the API's own word; None: it says nothing.
    default_output_tokens: int | None = None
    #: Whether the engine's request takes `cache_salt`, which keeps tenants' prefix caches apart.
    takes_cache_salt: bool = True
    #: Calls may be stored, and go on from what is, where their tenant has that.
    remembers: bool = False
    #: (error, request id) → the body of an error answer.
    error_body: Callable[[ApiError, str], bytes] = openai_body

    @property
    def is_billed(self) -> bool:
        return self.counts is not None

    def output_limit(self, kept: Mapping[str, Any]) -> int | None:
        """The limit of one sequence in tokens: the client's own, or the default once the gateway has set it."""
        name = self.limit_field(kept)
        return None if name is None else kept[name]

    def limit_field(self, kept: Mapping[str, Any]) -> str | None:
        """Where that limit stands."""
        return next((name for name in self.limit_fields if name in kept), None)
