"""Harmony's markers never reach a reader."""

from typing import Any

import pytest

from serving.engine.boundary import without_markers


async def passed(*messages: dict[str, Any]) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    wrapped = without_markers(send)
    for message in messages:
        await wrapped(message)
    return sent


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


async def test_a_whole_answer_is_shorter_and_says_so() -> None:
    """The length follows what was taken out."""
    answer = {"type": "http.response.body", "body": b'{"content":"<|channel|>final<|message|>Hi"}'}
    first, body = await passed(start((b"content-length", b"43")), answer)
    assert body["body"] == b'{"content":"finalHi"}'
    assert first["headers"] == [(b"content-length", b"21")]


@pytest.mark.parametrize("text", [b"<|start|>", b"a<|end|>", b"<|call|><|return|>b<|constrain|>"])
async def test_events_pass_without_markers(text: bytes) -> None:
    """Streams keep their events and their order."""
    events = [{"type": "http.response.body", "body": b"data: " + text, "more_body": True} for _ in range(2)]
    sent = await passed(start(), *events, {"type": "http.response.body", "body": b"", "more_body": False})
    assert [message["type"] for message in sent] == ["http.response.start"] + ["http.response.body"] * 3
    assert b"<|" not in b"".join(message.get("body", b"") for message in sent)
