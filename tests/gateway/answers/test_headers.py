"""Headers that an output limit cut, and texts that are none."""

from __future__ import annotations

import pytest

from serving.gateway.answers.headers import is_cut_header, is_header


@pytest.mark.parametrize(
    "text",
    [
        *("", "assistant", "analysis", "final", "assistantfinal", "assistantanalysis", "assistantcommentary to"),
        *("assistantcommentary to=", "assistantcommentary to=functions.get_weather", "commentary to=functions.f json"),
    ],
)
def test_what_a_cut_header_leaves_is_recognised(text: str) -> None:
    """At any token of it, as vLLM's parsers hand it out."""
    assert is_header(text)


@pytest.mark.parametrize("text", ["The", "json", " final", "final answer", "assistants", "analysis:", "to=functions.f"])
def test_a_text_is_none(text: str) -> None:
    """Words run together only in a header."""
    assert not is_header(text)


def test_one_token_is_no_header() -> None:
    """A model without headers may say `final` and be cut there; a header has a marker before its first word."""
    assert [is_cut_header("final", tokens) for tokens in (1, 2)] == [False, True]
    assert is_cut_header("", 1) and not is_cut_header("The", 5)
