"""Nouns: the record of a call says the same to all that render it, and changes no more once the call is over."""

from __future__ import annotations

import pytest

from serving.gateway.nouns import ITL_BUCKETS_S, InterTokenLatency
from tests.gateway.calls import record


def test_a_frozen_record_is_only_read() -> None:
    """What was shown in one place cannot be another figure in the next."""
    one = record()
    one.waited_s = 2.0
    one.freeze()
    with pytest.raises(AttributeError, match="the call is over: its usage"):
        one.usage = one.usage
    assert one.waited_s == 2.0


def test_a_clients_own_time_is_not_ours() -> None:
    """What an SLO judges is the duration without the body's arrival and the client's reading."""
    one = record(body_s=2.0, reading_s=3.0, ended_at=10.0, first_byte_at=4.0, is_streamed=True)
    assert (one.duration_s, one.client_s, one.served_s, one.ttft_s) == (10.0, 5.0, 5.0, 2.0)


def test_only_streams_have_a_first_token() -> None:
    """The first byte of a whole answer is its last token's too."""
    assert record(first_byte_at=4.0).ttft_s is None


def test_inter_token_latency_is_a_histogram() -> None:
    """Each gap is in the first bucket that holds it, and in all above; streams add up."""
    one, other = InterTokenLatency(), InterTokenLatency()
    for seconds in (ITL_BUCKETS_S[0], ITL_BUCKETS_S[0] * 1.1, 1000.0):
        one.observe(seconds)
    other.observe(ITL_BUCKETS_S[1])
    one.add(other)
    buckets = dict(one.buckets())
    assert (buckets["0.002"], buckets["0.005"], buckets["10.0"], buckets["+Inf"]) == (1, 3, 3, 4)
    assert one.total_s == pytest.approx(ITL_BUCKETS_S[0] * 2.1 + 1000 + ITL_BUCKETS_S[1])
