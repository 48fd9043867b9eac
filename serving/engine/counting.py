"""Counting: how many tokens the prompt of a Responses request has. vLLM renders such a prompt and has no route that counts it (MEM-14)."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import msgspec

#: The route as gateways ask it, and vLLM's, which gives all that it would generate from: tokens as a list.
ROUTE = ("POST", "/v1/responses/input_tokens")
RENDER_PATH = "/v1/responses/render"


class _Rendered(msgspec.Struct):
    token_ids: list[int]


def asks(scope: MutableMapping[str, Any]) -> bool:
    """Is it a request to count?"""
    return (scope["method"], scope["path"]) == ROUTE


def to_render(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The same request for vLLM's own route."""
    return {**scope, "path": RENDER_PATH, "raw_path": RENDER_PATH.encode()}


def counted(answer: bytes) -> bytes:
    """The count, as OpenAI's API has it, of what vLLM rendered; an error stays as it is."""
    try:
        rendered = msgspec.json.decode(answer, type=_Rendered)
    except msgspec.DecodeError:
        return answer
    return msgspec.json.encode({"object": "response.input_tokens", "input_tokens": len(rendered.token_ids)})
