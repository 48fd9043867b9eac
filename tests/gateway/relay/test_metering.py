"""Metering: what is learned from exact usages, and what must not be."""

from __future__ import annotations

from serving.gateway.admission.estimates import Rates
from serving.gateway.dialects.call import Call
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.responses import RESPONSES
from serving.gateway.relay.metering import meter_for
from tests.scripted_engine import chat_chunk, chat_final, responses_stream


def streamed(dialect: Dialect) -> Call:
    return Call(
        dialect=dialect,
        model="m",
        body=b"{}",
        is_streamed=True,
        wants_usage=False,
        wants_continuous_usage=False,
        sequences=1,
        choices=1,
        output_tokens_max=None,
    )


def learned(dialect: Dialect, stream: bytes) -> Rates:
    rates = Rates()
    meter = meter_for(streamed(dialect), rates)
    meter.scan(stream)
    meter.learn(1.0)
    return rates


def test_a_typed_stream_teaches_how_many_tokens_an_event_holds() -> None:
    """One event for two tokens raises the estimate for streams that are cut."""
    assert learned(RESPONSES, b"".join(responses_stream(["Hi!"]))).tokens_per_event > Rates().tokens_per_event


def test_a_client_that_asks_for_large_chunks_does_not_raise_others_bills() -> None:
    """`stream_interval` makes one chunk of many tokens; what is learned of typed events stays as it was."""
    large = chat_chunk({"content": "x" * 100}, 7, 64) + chat_final(7, 64)
    assert learned(CHAT, large).tokens_per_event == Rates().tokens_per_event
