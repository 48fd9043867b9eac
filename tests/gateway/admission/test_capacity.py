"""Capacity: calls are held back where the KV cache is committed or engines have enough waiting, and never without need."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.admission.capacity import CALL_TOKENS, KEPT_CALLS, NEXT_CALLS, STEP_TOKENS, Capacity, Hold
from serving.wire import EngineLoad


class Seen:
    """A replica's report."""

    def __init__(self, reported_at: float = 0.0, **load: float) -> None:
        self.load = EngineLoad(**load)  # type: ignore[arg-type]
        self.reported_at = reported_at


def hold(prompt_tokens: int = 100, output_tokens: float = 0.0, *, is_streamed: bool = True) -> Hold:
    return Hold(prompt_tokens, output_tokens, is_streamed)


def sent(capacity: Capacity, one: Hold | None = None, now: float = 1.0) -> Hold:
    """One call more."""
    one = one or hold()
    capacity.take(one, now)
    return one


def running(capacity: Capacity, count: int, one: Hold) -> list[Hold]:
    """Calls like this one, which have begun."""
    calls = [sent(capacity, hold(one.prompt_tokens, one.output_tokens)) for _ in range(count)]
    for call in calls:
        capacity.begun(call)
    return calls


def test_without_a_report_there_is_no_room() -> None:
    """No replica is ready: the line waits for one."""
    assert not Capacity().has_room(hold())


def test_the_kv_cache_bounds_what_runs() -> None:
    """Prompts, and half of what is generated, are committed; the end of a call makes room."""
    capacity = Capacity()
    capacity.report([Seen(kv_cache_tokens=10_000)])
    calls = running(capacity, 9, hold(500, 1000))
    assert capacity.has_room(hold(500, 1000))
    calls += running(capacity, 1, hold(500, 1000))
    assert not capacity.has_room(hold(500, 1000))
    capacity.give_back(calls[0])
    assert capacity.has_room(hold(500, 1000))


def test_a_cache_of_unknown_size_holds_nothing_back() -> None:
    """Engines that do not say what they have room for get all that they begin."""
    capacity = Capacity()
    capacity.report([Seen(), Seen(kv_cache_tokens=10)])
    running(capacity, 500, hold(500, 1000))
    assert capacity.has_room(hold(500, 1000))


def test_what_others_have_there_counts() -> None:
    """Requests that are not this gateway's take the cache as its own do."""
    capacity = Capacity()
    running(capacity, 3, hold(1000))
    sent(capacity, hold(1000))
    capacity.report([Seen(kv_cache_tokens=10_000, running_requests=4)])
    assert capacity.has_room(hold(1000))
    capacity.report([Seen(kv_cache_tokens=10_000, running_requests=10)])
    assert not capacity.has_room(hold(1000))


def test_shared_prefixes_make_room() -> None:
    """What the caches hold is learned from what they say: here a third of what was expected."""
    capacity = Capacity()
    running(capacity, 10, hold(1000))
    for _ in range(30):
        capacity.report([Seen(kv_cache_tokens=10_000, running_requests=10, kv_cache_used_ratio=0.33)])
    assert capacity.has_room(hold(1000))


def test_the_last_room_is_for_tenants_that_are_owed() -> None:
    """Others leave a few calls' worth, so that these need not wait for a call's end; engines take them first when all is full."""
    capacity = Capacity()
    calls = running(capacity, 194, hold(1000))
    capacity.report([Seen(kv_cache_tokens=200_000, running_requests=194, kv_cache_used_ratio=0.97)])
    assert KEPT_CALLS == 8
    for _ in range(2):
        capacity.give_back(calls.pop())
    assert not capacity.has_room(hold(1000)) and capacity.has_room(hold(1000), is_owed=True)
    capacity.give_back(calls[0])
    assert capacity.has_room(hold(1000))


def test_engines_get_no_more_than_they_begin() -> None:
    """A step's prompts wait in each at most; the first token of one makes room for the next."""
    capacity = Capacity()
    capacity.report([Seen(), Seen()])
    count = 2 * STEP_TOKENS // CALL_TOKENS
    calls = [sent(capacity) for _ in range(count)]
    assert not capacity.has_room(hold())
    capacity.begun(calls[0])
    assert capacity.has_room(hold())
    capacity.begun(calls[0])
    assert capacity.has_room(sent(capacity)) is False


def test_engines_that_have_nothing_waiting_get_more() -> None:
    """Where calls wait here and none there, twice as much may; where too much does, half; down to two calls each."""
    capacity = Capacity()

    def width() -> int:
        """Calls that may wait there."""
        calls = []
        while capacity.has_room(hold()):
            calls.append(sent(capacity))
        for call in calls:
            capacity.give_back(call)
        return len(calls)

    capacity.report([Seen()])
    first = width()
    capacity.report([Seen()])
    second = width()
    for _ in range(10):
        capacity.report([Seen(waiting_requests=5)])
    assert second == 2 * first and width() == NEXT_CALLS == 2
    capacity.report([Seen(waiting_requests=1)])
    assert width() == 2
    for _ in range(3):
        capacity.report([Seen(waiting_requests=0)])
        width()
    assert width() == 8


def test_a_few_that_wait_there_are_wanted() -> None:
    """An engine's queue is small but not empty: one in sixteen of those that run."""
    capacity = Capacity()
    for _ in range(10):
        capacity.report([Seen(running_requests=64, waiting_requests=4)])
    for _ in range(STEP_TOKENS // CALL_TOKENS - 1):
        sent(capacity)
    assert capacity.has_room(hold())


def test_whole_answers_have_begun_when_reports_show_it() -> None:
    """Nothing says so of each: of those that were there before the report as many are left as wait, the last ones."""
    capacity = Capacity()
    capacity.report([Seen()])
    for number in range(8):
        sent(capacity, hold(is_streamed=False), now=float(number))
    assert not capacity.has_room(hold())
    capacity.report([Seen(reported_at=5.5, waiting_requests=2)])
    # Of six before the report two wait, and two came after it.
    others = [sent(capacity, hold()) for _ in range(4)]
    assert not capacity.has_room(hold())
    capacity.begun(others[0])
    assert capacity.has_room(hold())


def test_no_gateway_is_kept_out() -> None:
    """With less than a call on each engine it may send one, however full others keep them."""
    capacity = Capacity()
    full = [Seen(kv_cache_tokens=100, running_requests=9, waiting_requests=9, kv_cache_used_ratio=1)] * 2
    for _ in range(5):
        capacity.report(full, 4)
    sent(capacity)
    assert capacity.has_room(hold())
    sent(capacity)
    assert not capacity.has_room(hold())


@pytest.mark.parametrize(("gateways", "part"), [(2, 5), (4, 2), (0, 5)])
def test_each_gateway_has_its_part_whatever_others_do(gateways: int, part: int) -> None:
    """Of caches that others have filled; where no directory counts gateways, the others are taken for one. What they leave is anybody's."""
    capacity = Capacity()
    for _ in range(30):
        capacity.report([Seen(kv_cache_tokens=10_700, running_requests=20, kv_cache_used_ratio=1)], gateways)
    while capacity.has_room(hold(1000)):
        capacity.begun(sent(capacity, hold(1000)))
    assert capacity.calls == part
    capacity.report([Seen(kv_cache_tokens=10_700, running_requests=part, kv_cache_used_ratio=part / 10)], gateways)
    while capacity.has_room(hold(1000)):
        capacity.begun(sent(capacity, hold(1000)))
    assert capacity.calls > part


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 2000), st.booleans()), max_size=60), st.randoms())
def test_everything_taken_is_given_back(sizes: list[tuple[int, float, bool]], chance: object) -> None:
    """Whatever begins, ends and is reported in between, at the end nothing is held."""
    pick = chance.choice  # type: ignore[attr-defined]
    capacity = Capacity()
    inside: list[Hold] = []
    for number, size in enumerate(sizes):
        inside.append(sent(capacity, Hold(*size), now=float(number)))
        if pick([True, False]):
            capacity.begun(pick(inside))
        if pick([True, False]):
            capacity.report([Seen(reported_at=number - 0.5, waiting_requests=pick([0, 1, 5]), running_requests=3)])
        if pick([True, False]):
            capacity.give_back(inside.pop(pick(range(len(inside)))))
    for one in inside:
        capacity.give_back(one)
    assert capacity.calls == capacity.fresh_calls == capacity.fresh_tokens == 0
    assert abs(capacity.kv_tokens) < 1e-6 and not capacity.silent_calls
