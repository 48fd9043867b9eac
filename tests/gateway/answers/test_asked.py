"""What an answer depends on beside what the engine is sent."""

from __future__ import annotations

import pytest

from serving.gateway.answers.asked import Asked


@pytest.mark.parametrize("asked", [Asked(offers_tools=True), Asked(stops=("x",)), Asked(wants_logprobs=True)])
def test_what_only_a_stream_tells_needs_a_stream(asked: Asked) -> None:
    """Which text is content, and how far a call had got, whole answers of the engine do not tell."""
    assert asked.needs_stream


def test_a_plain_answer_needs_none() -> None:
    """An engine's whole answer costs the gateway less."""
    assert not Asked(echoed={"metadata": {}}).needs_stream
