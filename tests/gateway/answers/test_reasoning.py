"""Reasoning: kept by a call's id, for its own tenant, for minutes, and in bounded memory."""

from __future__ import annotations

import pytest

from serving.gateway.answers.reasoning import ENTRY_BYTES, FORGETFUL, KEPT_S, TEXT_BYTES_MAX, Reasoning
from serving.gateway.answers.seal import Seal
from tests.clock import Clock


def call_id(number: int) -> str:
    return f"call_{number:016x}"


def reasoning(clock: Clock | None = None, bytes_max: int = 10_000) -> Reasoning:
    return Reasoning(Seal(bytes(32), lambda: 0.0), clock or Clock(), bytes_max=bytes_max)


def test_a_tenant_gets_back_what_came_before_its_own_calls() -> None:
    """Under each id; another tenant that knows the id gets nothing."""
    kept = reasoning()
    kept.of("t1").keep("thought", call_id(1), call_id(2))
    assert kept.of("t1").recall(call_id(1)) == kept.of("t1").recall(call_id(2)) == "thought"
    assert kept.of("t2").recall(call_id(1)) is None and kept.of("t1").recall(call_id(3)) is None


def test_it_is_kept_for_minutes_since_it_was_last_wanted() -> None:
    """A loop that goes on keeps its own; what is over is dropped with the tenant's next."""
    clock = Clock()
    kept = reasoning(clock)
    one = kept.of("t1")
    one.keep("thought", call_id(1))
    clock.advance(KEPT_S - 1)
    assert one.recall(call_id(1)) == "thought"
    clock.advance(KEPT_S - 1)
    assert one.recall(call_id(1)) == "thought"
    clock.advance(KEPT_S)
    assert one.recall(call_id(1)) is None
    one.keep("new", call_id(2))
    assert kept.size == ENTRY_BYTES + 3


def test_memory_is_bounded_and_one_tenant_makes_room_for_itself() -> None:
    """A tenant with a flood of calls loses its own oldest, not another's only one."""
    kept = reasoning(bytes_max=10 * (ENTRY_BYTES + 100))
    kept.of("small").keep("x" * 100, call_id(0))
    for number in range(50):
        kept.of("large").keep("y" * 100, call_id(number))
    assert kept.size <= 10 * (ENTRY_BYTES + 100)
    assert kept.of("small").recall(call_id(0)) and kept.of("large").recall(call_id(49))
    assert kept.of("large").recall(call_id(0)) is None


@pytest.mark.parametrize("text", ["", "x" * (TEXT_BYTES_MAX + 1)])
def test_nothing_and_too_much_are_not_kept(text: str) -> None:
    """Half a thought would be another one."""
    kept = reasoning(bytes_max=10**9)
    kept.of("t1").keep(text, call_id(1))
    assert kept.size == 0


@pytest.mark.parametrize("number", ["functions.f:0", "call_0", "", "x" * 200, "ABCDEFabc"])
def test_ids_that_are_not_random_are_not_kept(number: str) -> None:
    """Two conversations of a tenant would share them."""
    kept = reasoning()
    kept.of("t1").keep("thought", number)
    assert kept.size == 0 and kept.of("t1").recall(number) is None


def test_the_same_id_anew_takes_no_more_room() -> None:
    """As an answer that is asked for again would have."""
    kept = reasoning()
    for _ in range(3):
        kept.of("t1").keep("thought", call_id(1))
    assert kept.size == ENTRY_BYTES + len("thought")


def test_a_keeper_seals_for_its_own_tenant() -> None:
    """And without a gateway nothing is kept or sealed."""
    kept = reasoning()
    sealed = kept.of("t1").seal("thought")
    assert kept.of("t1").open(sealed) == "thought" and kept.of("t2").open(sealed) is None
    FORGETFUL.keep("thought", call_id(1))
    assert FORGETFUL.recall(call_id(1)) is FORGETFUL.open(sealed) is None and FORGETFUL.seal("thought") == ""
