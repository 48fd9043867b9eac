"""Events taken apart and put together."""

from __future__ import annotations

from serving.gateway.answers import framing


def test_a_block_is_its_events() -> None:
    """Joined they are the block, whatever is in it."""
    block = b": keep-alive\n\nevent: a\ndata: {}\n\ndata: [DONE]\n\n"
    assert framing.split(block) == [b": keep-alive\n\n", b"event: a\ndata: {}\n\n", b"data: [DONE]\n\n"]
    assert framing.split(b"data: unfinished") == [b"data: unfinished"]


def test_only_objects_are_read() -> None:
    """Comments, the end and what is broken stay as they are."""
    assert framing.read(b'event: a\ndata: {"a":1}\n\n') == {"a": 1}
    assert [
        framing.read(event) for event in (b": x\n\n", b"data: [DONE]\n\n", b"data: {\n\n", b"data: {\xff}\n\n")
    ] == [None] * 4


def test_an_event_is_named_after_its_type() -> None:
    """As Responses and Messages name theirs; a chunk has no name."""
    assert framing.named({"type": "ping"}) == b'event: ping\ndata: {"type":"ping"}\n\n'
    assert framing.chunk({"id": "é"}) == 'data: {"id":"é"}\n\n'.encode()
