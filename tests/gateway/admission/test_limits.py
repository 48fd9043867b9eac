"""Limits: what a call draws by its policies, and what a client learns of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from serving.gateway.admission import limits
from serving.gateway.admission.counters.counter import Draw, Kind, Level, Verdict
from serving.gateway.admission.limits import Cost, Plan, Plans, Subject
from serving.gateway.nouns import Caller, Decision
from serving.gateway.policies import NO_POLICY, Budget, Limits, Policy

NOW_S = datetime(2026, 12, 31, 23, 59, 30, tzinfo=UTC).timestamp()
COST = Cost(requests=1, tokens=30, prompt_tokens=10, micros=500)
ALL_LIMITS = Policy(
    requests_per_minute=60,
    tokens_per_minute=1_000,
    tokens_per_day=10_000,
    tokens_per_month=100_000,
    open_requests=4,
    monthly_budget=Budget(soft=1, hard=2),
    per_model={"m": Limits(open_requests=1)},
)


def caller(tenant: Policy = NO_POLICY, key: Policy = NO_POLICY) -> Caller:
    return Caller("t1", "acme", "k1", tenant_policy=tenant, key_policy=key)


def planned(one: Caller, model: str = "m") -> Plan:
    return limits.plan(one, model, NOW_S)


def drawn(one: Caller, model: str = "m") -> list[Draw]:
    return planned(one, model).draws(COST)


def test_no_policy_draws_nothing() -> None:
    """Nor is anything asked of the counters then."""
    assert not limits.are_set(caller()) and drawn(caller()) == []


def test_every_limit_is_drawn_once() -> None:
    """Calls, tokens and money, each in its own unit; what is over first comes first."""
    found = [(limits.subject(draw.name).what, draw.kind, draw.limit, draw.amount) for draw in drawn(caller(ALL_LIMITS))]
    assert found == [
        ("open_requests", Kind.OPEN, 4, 1),
        ("open_requests", Kind.OPEN, 1, 1),
        ("requests_per_minute", Kind.RATE, 60, 1),
        ("tokens_per_minute", Kind.RATE, 1_000, 30),
        ("tokens_per_day", Kind.WINDOW, 10_000, 30),
        ("tokens_per_month", Kind.WINDOW, 100_000, 30),
        ("budget", Kind.WINDOW, 2_000_000, 500),
    ]


def test_windows_are_days_and_months_of_utc() -> None:
    """They end when the next begins; a year's last day too."""
    new_year_us = round(datetime(2027, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
    day, month = drawn(caller(Policy(tokens_per_day=1, tokens_per_month=1)))
    assert (day.ends_at_us, month.ends_at_us) == (new_year_us, new_year_us)
    assert limits.subject(day.name).since_s == datetime(2026, 12, 31, tzinfo=UTC).timestamp()
    assert limits.subject(month.name).since_s == datetime(2026, 12, 1, tzinfo=UTC).timestamp()


def test_a_name_says_what_is_counted() -> None:
    """Keys, models with slashes of their own, and all of them."""
    one = caller(Policy(tokens_per_day=1), Policy(per_model={"org/m": Limits(requests_per_minute=1)}))
    rate, day = (limits.subject(draw.name) for draw in drawn(one, "org/m"))
    assert rate == Subject("t1", "requests_per_minute", 0, "k1", "org/m")
    assert (day.tenant_id, day.what, day.key_id, day.model) == ("t1", "tokens_per_day", None, None)
    assert [limits.subject(draw.name).what for draw in drawn(one, "other")] == ["tokens_per_day"]


def test_an_outputs_reservation_fits_its_bucket_and_a_prompt_must() -> None:
    """A generous `max_tokens` alone refuses no call for ever; a prompt beyond the limit does."""
    (small,) = drawn(caller(Policy(tokens_per_minute=20)))
    (tiny,) = drawn(caller(Policy(tokens_per_minute=5)))
    assert (small.amount, tiny.amount) == (20, 10)


def test_what_was_spent_is_in_each_draws_own_unit() -> None:
    """Calls are given back, tokens and money are what they were."""
    true = Cost(requests=1, tokens=7, micros=9)
    assert planned(caller(ALL_LIMITS)).spent(true) == [0, 0, 1, 7, 7, 7, 9]


def test_a_plan_holds_until_a_policy_or_the_day_changes() -> None:
    """Made once for calls that are alike, and anew when they are not."""
    plans, one = Plans(), caller(ALL_LIMITS)
    first = plans.of(one, "m", NOW_S)
    assert plans.of(one, "m", NOW_S + 29) is first
    assert plans.of(one, "m", NOW_S + 31) == limits.plan(one, "m", NOW_S + 31) != first
    assert plans.of(one, "other", NOW_S) == planned(one, "other")
    assert plans.of(caller(Policy(open_requests=1)), "m", NOW_S) == planned(caller(Policy(open_requests=1)))


def refusal(policy: Policy, retry_in_us: int | None) -> tuple[str | None, str, float | None, Decision]:
    one = caller(policy)
    found = limits.refused(one, drawn(one), Verdict((Level(0, 0),), 0, retry_in_us))
    return found.error.code, found.error.message, found.error.retry_after_s, found.decision


@pytest.mark.parametrize(
    ("policy", "retry_in_us", "code", "decision"),
    [
        (Policy(requests_per_minute=1), 1_500_000, "rate_limit_exceeded", Decision.REFUSED_RATE),
        (Policy(tokens_per_minute=50), 1_500_000, "rate_limit_exceeded", Decision.REFUSED_RATE),
        (Policy(tokens_per_minute=5), None, "request_too_large_for_limit", Decision.REFUSED_RATE),
        (Policy(tokens_per_day=1), 30_000_000, "insufficient_quota", Decision.REFUSED_QUOTA),
        (Policy(tokens_per_month=1), 30_000_000, "insufficient_quota", Decision.REFUSED_QUOTA),
        (Policy(monthly_budget=Budget(hard=0)), 30_000_000, "budget_exceeded", Decision.REFUSED_BUDGET),
        (Policy(open_requests=0), None, "concurrency_limit_exceeded", Decision.REFUSED_CONCURRENCY),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_each_kind_of_limit_has_its_own_code(
    policy: Policy, retry_in_us: int | None, code: str, decision: Decision
) -> None:
    """With the time of the counter that refused; one that no time helps has none."""
    found, message, retry_after_s, decided = refusal(policy, retry_in_us)
    assert (found, decided) == (code, decision) and "tenant 'acme'" in message
    expected = limits.OPEN_RETRY_S if code.startswith("concurrency") else retry_in_us and retry_in_us / 1e6
    assert retry_after_s == expected


@pytest.mark.parametrize(
    ("us", "text"),
    [(0, "0ms"), (1, "1ms"), (20_000, "20ms"), (1_000_000, "1s"), (1_500_000, "1.5s"), (360_000_000, "6m0s"),
     (59_999_999, "1m0s"), (3_600_000_000, "1h0m0s")],
)  # fmt: skip
def test_times_are_written_as_openai_writes_them(us: int, text: str) -> None:
    """Never shorter than they are."""
    assert limits.duration(us) == text


def test_headers_say_the_nearest_limit() -> None:
    """Of the tenant's and the key's on the same thing; Anthropic's clients get theirs."""
    one = caller(Policy(requests_per_minute=60, tokens_per_minute=1_000), Policy(requests_per_minute=10))
    plan = planned(one)
    verdict = Verdict((Level(50, 10_000_000), Level(3, 42_000_000), Level(970, 1_800_000)))
    assert dict(limits.headers(plan, verdict, NOW_S, is_anthropic=False)) == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"3",
        b"x-ratelimit-reset-requests": b"42s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"970",
        b"x-ratelimit-reset-tokens": b"1.8s",
    }
    theirs = dict(limits.headers(plan, verdict, NOW_S, is_anthropic=True))
    assert theirs[b"anthropic-ratelimit-requests-remaining"] == b"3"
    assert theirs[b"anthropic-ratelimit-requests-reset"] == b"2027-01-01T00:00:12Z"
    assert (
        limits.headers(planned(caller(Policy(tokens_per_day=1))), Verdict((Level(1, 1),)), 0, is_anthropic=False) == []
    )


@pytest.mark.parametrize(("left_micros", "is_over"), [(1_000_000, False), (999_999, True)])
def test_a_soft_budget_is_passed_before_the_hard_one(left_micros: int, is_over: bool) -> None:
    """By more than it says."""
    one = caller(Policy(monthly_budget=Budget(soft=1, hard=2)))
    assert limits.is_over_soft_budget(planned(one), Verdict((Level(left_micros, 0),))) is is_over


def test_a_soft_budget_alone_refuses_nothing() -> None:
    """It is counted against the largest number there is."""
    one = caller(Policy(monthly_budget=Budget(soft=1)))
    (draw,) = drawn(one)
    assert draw.limit == 10**15
    assert limits.is_over_soft_budget(planned(one), Verdict((Level(draw.limit - 1_000_001, 0),)))
