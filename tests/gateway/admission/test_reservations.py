"""Reservations: what is taken before an engine is asked, while it streams, and what of it stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec
import pytest

from serving.errors import ContextExceeded, RateLimitExceeded
from serving.gateway.admission import limits
from serving.gateway.admission.counters.counter import Draw, Level, Verdict
from serving.gateway.admission.estimates import Estimates
from serving.gateway.admission.quantiles import FIRST_TOKENS
from serving.gateway.admission.reservations import Reservations
from serving.gateway.dialects.call import Call
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.completions import COMPLETIONS
from serving.gateway.dialects.embeddings import EMBEDDINGS
from serving.gateway.dialects.messages import COUNT_TOKENS
from serving.gateway.http.asgi import Header
from serving.gateway.identity.changes import Change, Kind, News
from serving.gateway.ledger.prices import Price
from serving.gateway.nouns import Caller, CallRecord, Decision, Usage
from serving.gateway.policies import NO_POLICY, Budget, Policy
from tests.clock import Clock
from tests.gateway.calls import call
from tests.gateway.world import until

LIMITED = Policy(requests_per_minute=60, tokens_per_minute=100_000, open_requests=9)


class Noting:
    """Counters that grant or refuse as they are told, and note what they are asked."""

    def __init__(self, refused: int | None = None) -> None:
        self.refused = refused
        self.reserved: list[int] = []
        self.topped_up: list[list[int]] = []
        self.settled: list[int] = []
        self.doubted: list[str] = []

    def doubt(self, windows: Iterable[str]) -> None:
        self.doubted.extend(windows)

    async def reserve(self, lease: str, draws: Sequence[Draw]) -> Verdict:
        self.reserved = [draw.amount for draw in draws]
        return Verdict(tuple(Level(7, 0) for _ in draws), self.refused, 2_000_000)

    def top_up(self, lease: str, draws: Sequence[Draw]) -> None:
        self.topped_up.append([draw.amount for draw in draws])

    def settle(self, lease: str, reserved: Sequence[Draw], amounts: Sequence[int]) -> None:
        assert [draw.amount for draw in reserved] == self.reserved
        self.settled = list(amounts)


#: A token costs three millionths.
FLAT = Price(3_000_000, 3_000_000, 3_000_000)


class Desk:
    """Calls of one caller before it."""

    is_anthropic = False

    def __init__(self, policy: Policy = LIMITED, refused: int | None = None) -> None:
        self.counters = Noting(refused)
        self.reservations = Reservations(self.counters, lambda *_: FLAT, Estimates(), Clock(), look_s=0.001)
        self.caller = Caller("t1", "acme", "k1", tenant_policy=policy)
        self.record = CallRecord(request_id="r", started_at=0.0)
        self.headers: dict[bytes, bytes] = {}
        self.made = 0
        #: How often it was asked what was made.
        self.looks = 0

    def announce(self, *headers: Header) -> None:
        self.headers |= dict(headers)

    def held(self, one: Call) -> AbstractAsyncContextManager[object]:
        return self.reservations.held(self.caller, one, self.record, made=self._looked, answer=self)

    def _looked(self) -> int:
        self.looks += 1
        return self.made

    async def served(self, one: Call, usage: Usage) -> None:
        async with self.held(one):
            self.record.replica_id = "a"
            self.record.usage = usage


async def test_a_clients_limit_is_reserved_and_the_truth_is_kept() -> None:
    """Of every choice it asked for."""
    desk = Desk()
    one = call(CHAT, max_tokens=100, n=3)
    prompt_tokens = round(len(one.body) / 4)
    await desk.served(one, Usage(5, 40))
    assert desk.counters.reserved == [1, 1, prompt_tokens + 300]
    assert desk.counters.settled == [0, 1, 45]
    assert desk.headers[b"x-ratelimit-remaining-requests"] == b"7"


async def test_without_a_limit_it_is_what_nine_of_ten_answers_need() -> None:
    """Not the context: learned from this tenant's answers, whatever the model's own default is."""
    desk = Desk()
    one = call(CHAT)
    prompt_tokens = round(len(one.body) / 4)
    await desk.served(one, Usage(5, 1))
    assert desk.counters.reserved[-1] == prompt_tokens + FIRST_TOKENS
    for _ in range(300):
        await desk.served(one, Usage(5, 1))
    assert desk.counters.reserved[-1] < prompt_tokens + FIRST_TOKENS / 5
    capped = msgspec.structs.replace(one, output_tokens_max=8192)
    await desk.served(capped, Usage(5, 1))
    assert desk.counters.reserved[-1] < prompt_tokens + FIRST_TOKENS / 5


async def test_without_a_limit_each_sequence_is_reserved_for() -> None:
    """A hundred prompts in one call have a hundred answers; what is learned is of one."""
    desk = Desk()
    one = call(COMPLETIONS, prompt=["x"] * 100)
    prompt_tokens = round(len(one.body) / 4)
    await desk.served(one, Usage(100, 1_600))
    assert desk.counters.reserved[-1] == prompt_tokens + 100 * FIRST_TOKENS
    for _ in range(400):
        await desk.served(one, Usage(100, 1_600))
    assert 1_600 <= desk.counters.reserved[-1] - prompt_tokens < 100 * FIRST_TOKENS / 5


async def test_windows_are_read_anew_after_a_change() -> None:
    """Once: what was used while a limit was away is in the ledger alone."""
    desk = Desk(Policy(requests_per_minute=9, tokens_per_day=9_000))
    await desk.served(call(CHAT), Usage(5, 5))
    assert desk.counters.doubted == []
    desk.reservations.follow(News(1, [Change(Kind.TENANT, "t1")]))
    for _ in range(2):
        await desk.served(call(CHAT), Usage(5, 5))
    assert [limits.subject(name).what for name in desk.counters.doubted] == ["tokens_per_day"]


async def test_a_call_that_no_engine_had_costs_nothing() -> None:
    """Neither a request nor tokens: whatever ended it."""
    desk = Desk()
    with pytest.raises(KeyError):
        async with desk.held(call(CHAT)):
            raise KeyError
    assert desk.counters.settled == [0, 0, 0]


async def test_embeddings_have_no_output_and_counting_has_no_tokens() -> None:
    """What an engine only tokenizes is a request all the same."""
    desk = Desk()
    one = call(EMBEDDINGS)
    await desk.served(one, Usage(5, 0))
    assert desk.counters.reserved == [1, 1, round(len(one.body) / 4)]
    await desk.served(call(COUNT_TOKENS), Usage())
    assert desk.counters.reserved == [1, 1, 0] and desk.counters.settled == [0, 1, 0]


async def test_a_refused_call_learns_why_and_settles_nothing() -> None:
    """With the headers of its limits, and the decision in its record."""
    desk = Desk(refused=1)
    with pytest.raises(RateLimitExceeded) as refused:
        async with desk.held(call(CHAT)):
            pytest.fail("it was admitted")
    assert refused.value.retry_after_s == 2.0 and desk.record.decision is Decision.REFUSED_RATE
    assert b"x-ratelimit-limit-requests" in desk.headers and desk.counters.settled == []


async def test_a_caller_without_policies_asks_no_counter() -> None:
    """Nor gets headers."""
    desk = Desk(NO_POLICY)
    await desk.served(call(CHAT), Usage(5, 5))
    assert desk.counters.reserved == [] and desk.headers == {}


async def test_what_is_out_of_bounds_reserves_nothing() -> None:
    """It is the client's mistake, before anything is counted."""
    desk = Desk(Policy(context_tokens=1))
    with pytest.raises(ContextExceeded):
        desk.held(call(CHAT))


async def test_money_is_reserved_and_settled_by_price() -> None:
    """And a month that is over its soft budget says so in the answer and the record."""
    desk = Desk(Policy(monthly_budget=Budget(soft=0.5, hard=1)))
    one = call(CHAT, max_tokens=10)
    await desk.served(one, Usage(5, 2))
    assert desk.counters.reserved == [3 * (round(len(one.body) / 4) + 10)] and desk.counters.settled == [21]
    assert desk.record.is_over_soft_budget and desk.headers[b"x-budget-state"] == b"over_soft_limit"


GROWING = Policy(open_requests=1, tokens_per_day=10**6, monthly_budget=Budget(hard=1))


async def looks(desk: Desk, count: int = 5) -> None:
    """Wait until it was looked at so often."""
    before = desk.looks
    await until(lambda: desk.looks >= before + count)


async def test_a_stream_that_outgrows_its_reservation_takes_more() -> None:
    """As it grows, and not before."""
    desk = Desk(GROWING)
    async with desk.held(call(CHAT)):
        await looks(desk)
        assert desk.counters.topped_up == []
        desk.made = 700
        await looks(desk)
        ((tokens, micros),) = desk.counters.topped_up
        assert desk.counters.reserved[1] + tokens > 700 and micros == 3 * tokens


async def test_only_open_calls_without_a_limit_are_looked_at() -> None:
    """One with a limit of its own has all that it may need, and at rest no timer runs."""
    desk, clock = Desk(GROWING), Desk(GROWING)
    async with desk.held(call(CHAT)):
        await looks(desk)
    before, desk.made = desk.looks, 10_000
    async with desk.held(call(CHAT, max_tokens=10)), clock.held(call(CHAT)):
        await looks(clock)
    assert desk.looks == before and desk.counters.topped_up == []
