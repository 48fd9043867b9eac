"""Wishes: what a request says of memory: the fields of a body that no engine is to see, taken out of it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from serving.errors import InvalidRequest
from serving.gateway.dialects.checks import typed
from serving.gateway.dialects.dialect import Body

#: What an id can look like: anything else is none of ours, and databases need not be asked.
IDS = re.compile(r"[A-Za-z0-9_-]{1,64}")

_flag = typed(bool)
_text = typed(str)


class _Named(msgspec.Struct):
    id: str


_conversation = typed(str | _Named)


class Wish(msgspec.Struct, frozen=True):
    """What one call wants of memory."""

    stores: bool = True
    is_background: bool = False
    previous_id: str | None = None
    conversation_id: str | None = None


def possible(asked: str) -> str:
    """An id as a database is asked for it: one that cannot be, such as one with a NUL, as the one that nothing has."""
    return asked if IDS.fullmatch(asked) else ""


def taken(body: Body) -> Wish:
    """The wish of a body, which no longer says it; raises InvalidRequest. What is absent is as at OpenAI: responses are stored."""
    store = _given(body, "store", _flag, True)
    background = _given(body, "background", _flag, False)
    previous = _given(body, "previous_response_id", _text, None)
    conversation = _given(body, "conversation", _conversation, None)
    if previous is not None and conversation is not None:
        raise InvalidRequest(
            "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. Give one of them.",
            param="previous_response_id",
        )
    if background and not store:
        raise InvalidRequest(
            "Background responses are stored: 'store' must not be false with 'background'.", param="store"
        )
    return Wish(store, background, previous, conversation.id if isinstance(conversation, _Named) else conversation)


def _given(body: Body, name: str, check: Any, default: Any) -> Any:
    value = body.pop(name, None)
    return default if value in (None, "") else check(name, value)
