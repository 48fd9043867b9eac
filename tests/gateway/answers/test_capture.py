"""Capture: the reasoning before calls, out of recorded streams, however they are cut into blocks."""

from __future__ import annotations

import pytest

from serving.gateway.answers import capture
from serving.gateway.answers.capture import ASIDE_BYTES_MAX, Capture, Marks
from serving.gateway.answers.reasoning import TEXT_BYTES_MAX, Forgetful
from tests.gateway.answers.recorded_answers import stream


class Notes(Forgetful):
    """A keeper that writes down what it is given."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, ...]] = []

    def keep(self, text: str, *ids: str) -> None:
        self.kept.append((text, *ids))


def fed(marks: Marks, blocks: list[bytes]) -> list[tuple[str, ...]]:
    notes = Notes()
    one = Capture(marks, notes)
    for block in blocks:
        one.feed(block)
    return notes.kept


@pytest.mark.parametrize(
    ("marks", "name", "call_id"),
    [
        (capture.CHAT, "tiny-chat-tool", "chatcmpl-tool-94cafb3ed4d2c101"),
        (capture.MESSAGES, "tiny-messages-tool", "chatcmpl-tool-bbe1f45d421d643d"),
    ],
)
def test_the_reasoning_before_a_call_is_kept_with_its_id(marks: Marks, name: str, call_id: str) -> None:
    """Event by event or all at once."""
    expected = [("I should look it up.", call_id)]
    assert fed(marks, stream(name)) == fed(marks, [b"".join(stream(name))]) == expected


@pytest.mark.parametrize(
    ("marks", "name"), [(capture.CHAT, "tiny-chat-reasoned"), (capture.MESSAGES, "tiny-messages-reasoned")]
)
def test_an_answer_without_calls_is_not_kept(marks: Marks, name: str) -> None:
    """No loop goes on from it."""
    assert fed(marks, stream(name)) == []


def chunk(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"reasoning":"%s"}}]}\n\n' % text.encode()


CALL = b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"id":"c","type":"function","index":0}]}}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\n'


def test_a_long_reasoning_is_read_in_parts() -> None:
    """Escapes and letters of several bytes come out as they were meant."""
    piece = 'é\\n\\"\\u00e9' + "x" * 100
    count = 3 * ASIDE_BYTES_MAX // 100
    assert fed(capture.CHAT, [*[chunk(piece)] * count, CALL, END]) == [(('é\n"é' + "x" * 100) * count, "c")]


def test_what_is_set_aside_is_bounded() -> None:
    """A model that thinks without end fills no memory."""
    one = Capture(capture.CHAT, Notes())
    for _ in range(400):
        one.feed(chunk("x" * 1000))
        assert len(one._aside) <= ASIDE_BYTES_MAX + 2000 and len(one._text) <= TEXT_BYTES_MAX + 1000


def test_what_arguments_spell_is_no_reasoning() -> None:
    """Inside a string every quote is escaped."""
    spelt = b'data: {"choices":[{"index":0,"delta":{"content":"\\"reasoning\\":\\"x\\""}}]}\n\n'
    assert fed(capture.CHAT, [spelt, CALL, END]) == []
