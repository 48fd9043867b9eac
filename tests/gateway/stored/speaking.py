"""An engine that speaks Responses as vLLM does, and says what it was told; for what is stored of that."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.scripted_engine import MODEL, RESPONSES_USAGE, Script, answering, compact, event

Item = dict[str, Any]


def message(text: str) -> Item:
    part: Item = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    return {
        "id": "msg_e",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
        "phase": None,
    }


def thought(text: str) -> Item:
    return {
        "id": "rs_e",
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
        "encrypted_content": None,
        "status": None,
    }


def called(name: str, call_id: str = "call_0123456789abcdef") -> Item:
    return {
        "id": "fc_e",
        "type": "function_call",
        "name": name,
        "arguments": "{}",
        "call_id": call_id,
        "status": "completed",
    }


def response(items: Sequence[Item], status: str = "completed") -> Item:
    """As `ResponsesResponse` has it."""
    return {
        "id": "resp_engine",
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": MODEL,
        "output": list(items),
        "incomplete_details": None,
        "instructions": None,
        "metadata": None,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": 100,
        "previous_response_id": None,
        "reasoning": None,
        "text": None,
        "usage": RESPONSES_USAGE if status == "completed" else None,
    }


def stream(items: Sequence[Item]) -> list[bytes]:
    """The same as typed events, one write each; of messages, one delta a word."""
    events: list[tuple[str, Item]] = []

    def add(kind: str, **data: object) -> None:
        events.append((kind, {"type": kind, "sequence_number": len(events), **data}))

    add("response.created", response=response([], "in_progress"))
    add("response.in_progress", response=response([], "in_progress"))
    for index, item in enumerate(items):
        place = {"item_id": item["id"], "output_index": index, "content_index": 0}
        add("response.output_item.added", output_index=index, item={**item, "status": "in_progress", "content": []})
        if item["type"] == "message":
            text = item["content"][0]["text"]
            add("response.content_part.added", **place, part=item["content"][0] | {"text": ""})
            for word in text.split(" "):
                add("response.output_text.delta", **place, delta=word + " ", logprobs=[])
            add("response.output_text.done", **place, text=text, logprobs=[])
            add("response.content_part.done", **place, part=item["content"][0])
        add("response.output_item.done", output_index=index, item=item)
    add("response.completed", response=response(items))
    return [event(kind, data) for kind, data in events]


def speaking(*answers: Sequence[Item]) -> Callable[[str, dict[str, object]], Script]:
    """What an engine improvises: these answers in turn, then again the last one; whole or as a stream, as it is asked."""
    left = list(answers)

    def improvise(path: str, body: dict[str, object]) -> Script:
        items = left.pop(0) if len(left) > 1 else left[0]
        if body.get("stream") is True:
            return Script(stream(items))
        return answering(compact(response(items)).encode())

    return improvise


def told(body: dict[str, object]) -> list[str]:
    """What an engine was told, an item a line: its kind and its text."""
    given = body["input"]
    if isinstance(given, str):
        return [f"user: {given}"]
    assert isinstance(given, list)
    return [f"{_kind(item)}: {_text(item)}" for item in given]


def _kind(item: Item) -> str:
    return str(item["role"]) if item.get("type", "message") == "message" else str(item["type"])


def _text(item: Item) -> str:
    content = item.get("content", item.get("output", item.get("name")))
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else json.dumps(content)
