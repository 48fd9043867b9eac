"""Shapes: the least that an engine's answer holds on each route. What lacks it is no answer, whatever its status says.

Only what every client of the route reads is required; keys beyond it, and their order, are the engine's.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta


class _Object(msgspec.Struct):
    """Any JSON object."""


class _ChatChoice(msgspec.Struct):
    message: _Object


class ChatAnswer(msgspec.Struct):
    choices: Annotated[list[_ChatChoice], Meta(min_length=1)]


class _TextChoice(msgspec.Struct):
    text: str


class CompletionAnswer(msgspec.Struct):
    choices: Annotated[list[_TextChoice], Meta(min_length=1)]


class ResponsesAnswer(msgspec.Struct):
    output: list[_Object]


class MessagesAnswer(msgspec.Struct):
    content: list[_Object]


class _Embedded(msgspec.Struct):
    #: Numbers, or their bytes in base64; thousands of them, which need not be made into objects here.
    embedding: msgspec.Raw


class EmbeddingsAnswer(msgspec.Struct):
    data: Annotated[list[_Embedded], Meta(min_length=1)]


class TokenizeAnswer(msgspec.Struct):
    tokens: list[int]


class CountAnswer(msgspec.Struct):
    input_tokens: int


#: What a stream of chunks begins with.
FIRST_CHUNK = re.compile(rb'data: ?\{[^\n]*"choices": ?\[')
#: What a stream of Responses begins with.
FIRST_RESPONSES_EVENT = re.compile(rb"event: response\.[a-z_.]+\ndata: ?\{")
#: What a stream of Messages begins with.
FIRST_MESSAGES_EVENT = re.compile(rb"event: (?:message_start|ping)\ndata: ?\{")

#: What an answer too large to be read whole begins with: an object, and not an error's.
_LARGE = re.compile(rb'\s*\{\s*"(?!error")')


def is_answer(body: bytes | bytearray, shape: type[msgspec.Struct]) -> bool:
    """Is this complete body of JSON an answer of that shape?"""
    try:
        msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def may_be_answer(beginning: bytes | bytearray) -> bool:
    """Can an answer begin like this, as far as it can be told without its end?"""
    return _LARGE.match(beginning) is not None
