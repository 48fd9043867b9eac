"""Dialects: one file per API that clients speak.

A dialect is one object: the request fields it honours, ignores or refuses, its checks and rules, how its answers carry
usage, how its streams end, and the shape of its errors. A new API is one new file here and a line in the engine's allow-list.
"""

from __future__ import annotations

from collections.abc import Mapping

from serving.errors import ApiError
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.completions import COMPLETIONS
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.embeddings import EMBEDDINGS
from serving.gateway.dialects.messages import COUNT_TOKENS, MESSAGES
from serving.gateway.dialects.responses import INPUT_TOKENS, RESPONSES
from serving.gateway.dialects.tokenize import TOKENIZE
from serving.gateway.http.bodies import openai_body

#: Path → the API that is spoken there.
DIALECTS: Mapping[str, Dialect] = {
    dialect.path: dialect
    for dialect in (CHAT, COMPLETIONS, RESPONSES, INPUT_TOKENS, EMBEDDINGS, MESSAGES, COUNT_TOKENS, TOKENIZE)
}


def speaks_anthropic(path: str, version: str | None) -> bool:
    """Is this a client of Anthropic's API? Told by the path, or where that is no API's own by its header `anthropic-version`."""
    return path.startswith(MESSAGES.path) or (version is not None and path not in DIALECTS)


def error_body(error: ApiError, request_id: str, *, is_anthropic: bool) -> bytes:
    """An error's body in the shape that the client's API has for it."""
    return (MESSAGES.error_body if is_anthropic else openai_body)(error, request_id)
