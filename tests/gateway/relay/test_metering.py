"""Metering: what is learned from exact usages, and what must not be."""

from __future__ import annotations

import pytest

from serving.gateway.admission.estimates import Rates
from serving.gateway.dialects.call import Call
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.dialects.messages import MESSAGES
from serving.gateway.dialects.responses import RESPONSES
from serving.gateway.nouns import Usage
from serving.gateway.relay.metering import is_plausible, meter_for
from tests.gateway.calls import call
from tests.scripted_engine import (
    chat_answer,
    chat_chunk,
    chat_final,
    compact,
    event,
    messages_stream,
    responses_stream,
)


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


#: What no engine can have counted, as (prompt, completion).
ABSURD = [(7, 2**53), (2**53, 2), (-1, 2), (7, -1), (4097, 1), (7, 4097), (2**70, 2**70)]


@pytest.mark.parametrize(("prompt", "completion"), ABSURD)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_an_absurd_usage_is_neither_billed_as_exact_nor_learned(
    prompt: int, completion: int, is_streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """More than its context holds, or less than nothing: the call is estimated under a name of its own, and it is logged."""
    rates = Rates()
    meter = meter_for(call(CHAT, stream=is_streamed), rates, context_tokens=4096)
    meter.scan(chat_chunk({"content": "Hi"}, 7, 1) + chat_final(prompt, completion) if is_streamed else b"")
    if not is_streamed:
        meter.scan(chat_answer("Hi there", prompt, completion))
    meter.close()
    meter.learn(1.0)
    usage = meter.usage(1.0)
    assert usage.estimated_by == "implausible_usage" and 0 < usage.completion_tokens < 10
    assert 0 < usage.prompt_tokens < 100 and rates == Rates()
    assert "cannot be true" in caplog.text


def test_several_sequences_may_cost_more_than_one_context() -> None:
    """Each holds one; without a known context only what no model could hold is refused."""
    assert is_plausible(Usage(7, 8192), call(CHAT, n=2), 4096) and not is_plausible(
        Usage(7, 8193), call(CHAT, n=2), 4096
    )
    assert is_plausible(Usage(7, 10**6), call(CHAT), 0) and not is_plausible(Usage(7, 2**53), call(CHAT), 0)


@pytest.mark.parametrize("null", [b"", b',"usage":null'])
def test_a_stream_without_usage_is_not_free(null: bytes) -> None:
    """Its chunks with text are counted, as other APIs' events are; those without any are not."""
    words = ["", "Hi", " there", ""]
    chunks = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    meter = meter_for(call(CHAT, stream=True), Rates())
    for chunk in chunks:
        meter.scan(b"data: " + compact(chunk)[:-1].encode() + null + b"}\n\n")
    meter.scan(b"data: [DONE]\n\n")
    meter.learn(1.0)
    usage = meter.usage(1.0)
    assert (usage.completion_tokens, usage.estimated_by) == (2, "events_seen") and usage.prompt_tokens > 0


def test_a_whole_answer_without_usage_is_not_free_either() -> None:
    """By the bytes of its texts, not by those around them."""
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": 'He said "Hi" forty times'}}]}
    meter = meter_for(call(CHAT), Rates())
    meter.scan(compact(answer).encode())
    meter.close()
    usage = meter.usage(0.001)
    assert (usage.completion_tokens, usage.estimated_by) == (6, "answer_bytes")


def harmony(thoughts: int, words: int) -> bytes:
    """A stream of Messages as gpt-oss makes it: a part of reasoning, then one of text."""
    start = messages_stream([])[0].partition(b"event: content_block_start")[0]
    parts = []
    for kind, count in (("thinking", thoughts), ("text", words)):
        parts.append(event("content_block_start", {"type": "content_block_start", "content_block": {"type": kind}}))
        delta: dict[str, object] = {"type": "content_block_delta", "delta": {"type": f"{kind}_delta", kind: "x"}}
        parts += [event("content_block_delta", delta)] * count
    return start + b"".join(parts if words else parts[:-1])


@pytest.mark.parametrize(("thoughts", "words", "tokens"), [(1, 0, 4), (6, 0, 9), (6, 1, 16), (6, 6, 21)])
def test_a_cut_stream_of_harmony_is_billed_for_what_opens_its_parts(thoughts: int, words: int, tokens: int) -> None:
    """Measured with tiny-gpt-oss: one token an event, 3 before the first part, 6 between two; a signature is no token."""
    meter = meter_for(call(MESSAGES, stream=True), Rates())
    signature: dict[str, object] = {
        "type": "content_block_delta",
        "delta": {"type": "signature_delta", "signature": "x"},
    }
    meter.scan(harmony(thoughts, words) + event("content_block_delta", signature))
    usage = meter.usage(1.0)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated_by) == (9, tokens, "events_seen")


def test_a_long_stream_teaches_what_an_event_holds_and_a_short_one_what_opens_a_part() -> None:
    """Each what it tells best."""
    rates = Rates()
    for words in (6, 60):
        meter = meter_for(call(MESSAGES, stream=True), rates)
        end: dict[str, object] = {
            "type": "message_delta",
            "delta": {},
            "usage": {"input_tokens": 9, "output_tokens": 3 + 6 + 4 + 2 * words},
        }
        meter.scan(harmony(4, words) + event("message_delta", end))
        meter.learn(1.0)
    assert rates.next_part.count == 1 and rates.tokens_per_event > 1
