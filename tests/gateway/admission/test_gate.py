"""Gate: as many requests are open as the settings allow."""

from __future__ import annotations

import asyncio

import pytest

from serving.errors import GatewayFull
from serving.gateway.admission.gate import Gate
from serving.gateway.admission.memory import ANSWER_BYTES, Memory
from serving.gateway.nouns import CallRecord, Decision


def record() -> CallRecord:
    return CallRecord(request_id="r", started_at=0.0)


def test_a_request_past_the_bound_is_refused_at_once() -> None:
    """Its record says so, the client learns when to retry, and those inside are not disturbed."""
    gate, inside, outside = Gate(1, Memory(10**9)), record(), record()
    with gate.entered(inside):
        with pytest.raises(GatewayFull) as refused, gate.entered(outside):
            pass
        assert refused.value.retry_after_s == 1
    assert (inside.decision, outside.decision) == (None, Decision.REFUSED_FULL)


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, GatewayFull("")])
def test_a_place_comes_back_however_its_request_ends(error: BaseException) -> None:
    """By an error, a cancellation or a refusal further in."""
    gate = Gate(1, Memory(10**9))
    for _ in range(3):
        with pytest.raises(BaseException), gate.entered(record()):  # noqa: B017, PT011 Whatever it is.
            raise error
    with gate.entered(record()):
        pass


def test_a_refused_request_takes_no_place() -> None:
    """Nor does it give one back that is not its own."""
    gate = Gate(1, Memory(10**9))
    with gate.entered(record()):
        for _ in range(3):
            with pytest.raises(GatewayFull), gate.entered(record()):
                pass
    with gate.entered(record()):
        pass


def test_a_request_for_which_there_is_no_memory_is_refused_as_one_too_many() -> None:
    """At the door or while its body arrives; its record says so either way."""
    gate, inside, growing = Gate(9, Memory(2 * ANSWER_BYTES)), record(), record()
    with gate.entered(inside), pytest.raises(GatewayFull), gate.entered(growing) as share:
        share.take(1)
    assert (inside.decision, growing.decision) == (None, Decision.REFUSED_FULL)
    with gate.entered(record()), gate.entered(record()):
        outside = record()
        with pytest.raises(GatewayFull), gate.entered(outside):
            pass
        assert outside.decision is Decision.REFUSED_FULL
