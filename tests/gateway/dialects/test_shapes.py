"""Shapes: what every route's answers hold, and what is none of its answers."""

from __future__ import annotations

import pytest

from serving.gateway.dialects import DIALECTS
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.shapes import is_answer, may_be_answer
from tests.scripted_engine import Script, error_body, unscripted

STREAMING = [dialect for dialect in DIALECTS.values() if dialect.stream]


def said(dialect: Dialect, *, is_streamed: bool = False) -> bytes:
    """A proper answer of this route."""
    script: Script = unscripted(dialect.path, {"stream": is_streamed})
    return b"".join(script.writes)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_each_route_knows_its_own_answers_and_no_others(dialect: Dialect) -> None:
    """An engine that answers as another route would is as wrong as one that answers in HTML. Both counts of tokens are alike."""
    own = said(dialect)
    assert is_answer(own, dialect.answer) and may_be_answer(own)
    for other in DIALECTS.values():
        assert other.answer is dialect.answer or not is_answer(said(other), dialect.answer), other.path


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_no_part_of_an_answer_is_an_answer(dialect: Dialect) -> None:
    """Wherever it is cut; nor is one with something behind it."""
    own = said(dialect)
    assert not any(is_answer(own[:length], dialect.answer) for length in range(len(own)))
    assert not is_answer(own + b"}", dialect.answer)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"<html>", b"\xff", b"[" * 100_000, error_body(500, "x"), b'{"choices":']
)
def test_what_is_no_answer_anywhere(body: bytes) -> None:
    """Errors under a status of 200, other formats, and nothing."""
    assert not any(is_answer(body, dialect.answer) for dialect in DIALECTS.values())


def test_a_large_answer_is_told_by_its_beginning() -> None:
    """All that can be known before its end: it is an object, and not an error."""
    assert may_be_answer(b' {"id":"x","choices"') and may_be_answer(b'{"errors_seen":0')
    assert not any(may_be_answer(body) for body in (b"<html>", b"[1", b"", error_body(500, "x"), b"data: {"))


@pytest.mark.parametrize("dialect", STREAMING, ids=lambda dialect: dialect.path)
def test_a_stream_is_told_by_its_first_event(dialect: Dialect) -> None:
    """Each route knows its own streams; errors, whole answers and other routes' events are no beginning."""
    assert dialect.stream is not None
    opening = dialect.stream.opening
    assert opening.match(said(dialect, is_streamed=True))
    others = [said(other, is_streamed=True) for other in STREAMING if other.stream is not dialect.stream]
    for wrong in (*others, said(dialect), b"data: [DONE]\n\n", b"data: <html>\n\n", b"data: {}\n\n"):
        assert not opening.match(wrong), wrong
