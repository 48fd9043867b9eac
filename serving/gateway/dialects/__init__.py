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
from serving.gateway.dialects.responses import RESPONSES
from serving.gateway.dialects.tokenize import TOKENIZE
from serving.gateway.http.bodies import openai_body

#: Path → the API that is spoken there.
DIALECTS: Mapping[str, Dialect] = {
    dialect.path: dialect for dialect in (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, MESSAGES, COUNT_TOKENS, TOKENIZE)
}


def error_body(path: str, error: ApiError, request_id: str) -> bytes:
    """An error's body in the shape of the API that is spoken at `path`: of a path below Anthropic's, in Anthropic's."""
    dialect = DIALECTS.get(path) or (MESSAGES if path.startswith(MESSAGES.path) else None)
    return dialect.error_body(error, request_id) if dialect else openai_body(error, request_id)
