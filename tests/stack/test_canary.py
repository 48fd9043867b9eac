"""Prompts, answers, schemas and keys appear in no log: a canary is sent down every path and looked for everywhere."""

from tests.stack.conftest import SMOLLM2
from tests.stack.http import bearer, call
from tests.stack.running import Stack
from tests.stack.traces import holding

CANARY = "canary8b1f"
SCHEMA = {"type": "object", "properties": {CANARY: {"type": "string"}}, "required": [CANARY]}
TOOL = {"type": "function", "function": {"name": CANARY, "description": CANARY, "parameters": SCHEMA}}
MESSAGES = [{"role": "user", "content": f"Repeat: {CANARY}"}]
CHAT = {"model": SMOLLM2, "messages": MESSAGES, "max_tokens": 8}
BROKEN_SCHEMA = {"type": CANARY}


def test_a_canary_is_found_in_no_log(stack: Stack) -> None:
    """Success, 4xx, tool, schema, refused-key and engine-crash paths leave no trace of what was said."""
    paths = {
        "success": CHAT,
        "streamed": CHAT | {"stream": True},
        "tool": CHAT | {"tools": [TOOL], "tool_choice": "required"},
        "schema": CHAT
        | {"response_format": {"type": "json_schema", "json_schema": {"name": CANARY, "schema": SCHEMA}}},
        "broken schema": CHAT
        | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": BROKEN_SCHEMA}}},
        "unknown field": CHAT | {CANARY: CANARY},
        "wrong type": CHAT | {"temperature": CANARY},
        "wrong message": CHAT | {"messages": [{"role": CANARY, "content": CANARY}]},
        "too long": CHAT | {"messages": [{"role": "user", "content": f"{CANARY} " * 5000}]},
        "unknown model": CHAT | {"model": CANARY},
    }
    for body in paths.values():
        call(stack.url, "POST", "/v1/chat/completions", body, bearer(stack.key))
    others: tuple[tuple[str, dict[str, object]], ...] = (
        ("/v1/completions", {"model": SMOLLM2, "prompt": CANARY, "max_tokens": 4}),
        ("/v1/responses", {"model": SMOLLM2, "input": CANARY, "max_output_tokens": 4}),
        ("/v1/messages", {"model": SMOLLM2, "messages": MESSAGES, "max_tokens": 4}),
        ("/tokenize", {"model": SMOLLM2, "prompt": CANARY}),
        (f"/{CANARY}?key={CANARY}", {}),
    )
    for route, body in others:
        call(stack.url, "POST", route, body, bearer(stack.key))
    call(stack.url, "POST", "/v1/chat/completions", CHAT, bearer(f"sk-{CANARY}"))
    assert holding(stack, CANARY) == []
    assert [path.name for path in holding(stack, stack.key)] == ["admin.key", "up.out"]
    assert [path.name for path in holding(stack, stack.secret)] == ["plane.secret"]
