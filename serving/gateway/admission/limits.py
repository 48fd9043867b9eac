"""Limits: from the policies of a call's tenant and key to what it draws of which counters, and from a refusal to its error. Pure.

A counter's name says what it counts, so that it can be read from the ledger: `<tenant id>/<what>/<since>/<key id>/<model>`, `-` where
it is for all keys or models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec

from serving.errors import (
    ApiError,
    BudgetExceeded,
    ConcurrencyExceeded,
    QuotaExceeded,
    RateLimitExceeded,
    TooLargeForLimit,
)
from serving.gateway import policies
from serving.gateway.admission import bounds
from serving.gateway.admission.bounds import Bounds
from serving.gateway.admission.counters.counter import Draw, Kind, Verdict
from serving.gateway.http.asgi import Header
from serving.gateway.nouns import Caller, Decision
from serving.gateway.policies import NO_POLICY, Limits, Policy

S_US = 1_000_000
MINUTE_US = 60 * S_US
DAY_S = 86_400
#: Millionths of the currency.
MICROS = 1_000_000
#: Seconds after which a call is tried again that another one has to end for.
OPEN_RETRY_S = 1.0
ALL = "-"
#: Plans that are remembered, about 2 KB each with four limits.
PLANS_MAX = 20_000
#: What counters count.
OPEN_REQUESTS, REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE = "open_requests", "requests_per_minute", "tokens_per_minute"
TOKENS_PER_DAY, TOKENS_PER_MONTH, BUDGET = "tokens_per_day", "tokens_per_month", "budget"


class Cost(msgspec.Struct, frozen=True):
    """What a call comes to, estimated or true."""

    requests: int = 1
    tokens: int = 0
    #: Of these, those of the prompt: what is reserved for the output may be cut to fit a bucket, the prompt may not.
    prompt_tokens: int = 0
    #: Millionths of the currency.
    micros: int = 0


class Subject(msgspec.Struct, frozen=True):
    """What a counter's name says."""

    tenant_id: str
    what: str
    #: Seconds since the epoch from which on it counts; 0 where it has no beginning.
    since_s: int
    #: None: all keys.
    key_id: str | None
    #: None: all models.
    model: str | None


class Refused(msgspec.Struct, frozen=True):
    """Why a call is not admitted: its error, and the decision for its record."""

    error: ApiError
    decision: Decision


def are_set(caller: Caller) -> bool:
    """Is there any policy to keep?"""
    return caller.tenant_policy is not NO_POLICY or caller.key_policy is not NO_POLICY


class Slot(msgspec.Struct, frozen=True):
    """One limit that a call must keep, whatever it takes of it."""

    what: str
    name: str
    kind: Kind
    limit: int
    #: Which of a cost's amounts it counts, by its place in `_amounts`.
    unit: int
    period_us: int = 0
    ends_at_us: int = 0
    #: Of a budget, the millionths from which on answers say so.
    soft_limit: float | None = None


class Plan(msgspec.Struct, frozen=True):
    """All limits of a caller's calls to one model on one day, and what follows from them for every call.

    In the order of `_ORDER`, which decides between limits that refuse for as long (TEN-57).
    """

    slots: tuple[Slot, ...]
    bounds: Bounds
    #: Names of those that the ledger knows.
    windows: tuple[str, ...]
    #: Places of those with a soft limit.
    soft: tuple[int, ...]
    #: What is counted a minute, as headers call it, and the places of its limits.
    rates: tuple[tuple[str, tuple[int, ...]], ...]

    def draws(self, cost: Cost) -> list[Draw]:
        """What a call of that cost draws."""
        amounts = _amounts(1, cost)
        return [
            Draw(
                slot.name,
                slot.kind,
                slot.limit,
                _fitting(cost, slot.limit) if slot.what == TOKENS_PER_MINUTE else amounts[slot.unit],
                slot.period_us,
                slot.ends_at_us,
            )
            for slot in self.slots
        ]

    def spent(self, cost: Cost) -> list[int]:
        """What its draws come to when the call came to `cost`."""
        amounts = _amounts(0, cost)
        return [amounts[slot.unit] for slot in self.slots]


def _amounts(open_requests: int, cost: Cost) -> tuple[int, int, int, int]:
    return open_requests, cost.requests, cost.tokens, cost.micros


def _fitting(cost: Cost, limit: int) -> int:
    return max(cost.prompt_tokens, min(cost.tokens, limit))


def plan(caller: Caller, model: str, now_s: float) -> Plan:
    """What a call at that moment must keep."""
    windows = _windows(int(now_s // DAY_S))
    slots = [
        slot
        for key_id, policy in ((ALL, caller.tenant_policy), (caller.key_id, caller.key_policy))
        if policy is not NO_POLICY
        for slot in _of_policy(caller.tenant_id, key_id, policy, model, windows)
    ]
    slots.sort(key=lambda slot: _ORDER.index(slot.what))
    rates = {unit: tuple(it for it, slot in enumerate(slots) if slot.what == what) for what, unit in _UNITS.items()}
    return Plan(
        tuple(slots),
        bounds.of(caller, model),
        windows=tuple(slot.name for slot in slots if slot.kind is Kind.WINDOW),
        soft=tuple(place for place, slot in enumerate(slots) if slot.soft_limit is not None),
        rates=tuple((unit, places) for unit, places in rates.items() if places),
    )


def everything(caller: Caller, now_s: float) -> list[Slot]:
    """All limits of a caller's calls, whichever model they are for."""
    named = sorted({model for policy in (caller.tenant_policy, caller.key_policy) for model in policy.per_model})
    return list({slot.name: slot for model in (ALL, *named) for slot in plan(caller, model, now_s).slots}.values())


def look(slot: Slot) -> Draw:
    """What takes nothing of it, and says what is left."""
    return Draw(slot.name, slot.kind, slot.limit, 0, slot.period_us, slot.ends_at_us)


class Plans:
    """Plans that were made lately: most calls are like one before."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, str], tuple[int, Policy, Policy, Plan]] = OrderedDict()

    def of(self, caller: Caller, model: str, now_s: float) -> Plan:
        """As `plan`."""
        # Keys without a policy of their own share their tenant's.
        key_id = ALL if caller.key_policy is NO_POLICY else caller.key_id
        whose, day = (caller.tenant_id, key_id, model), int(now_s // DAY_S)
        known = self._known.get(whose)
        if known is not None:
            at, tenant_policy, key_policy, found = known
            if at == day and tenant_policy is caller.tenant_policy and key_policy is caller.key_policy:
                return found
        made = plan(caller, model, now_s)
        self._known[whose] = day, caller.tenant_policy, caller.key_policy, made
        if len(self._known) > PLANS_MAX:
            self._known.popitem(last=False)
        return made


@lru_cache(maxsize=100_000)
def subject(name: str) -> Subject:
    """What the counter of this name counts."""
    tenant_id, what, since, key_id, model = name.split("/", 4)
    return Subject(tenant_id, what, int(since), None if key_id == ALL else key_id, None if model == ALL else model)


def refused(caller: Caller, draws: Sequence[Draw], verdict: Verdict) -> Refused:
    """The error of a verdict that refuses."""
    draw = draws[verdict.refused or 0]
    of = subject(draw.name)
    whose = f"this key of tenant '{caller.tenant}'" if of.key_id else f"tenant '{caller.tenant}'"
    where = f"{whose} and the model '{of.model}'" if of.model else whose
    wait_s = None if verdict.retry_in_us is None else verdict.retry_in_us / S_US
    if draw.kind is Kind.OPEN:
        said = (
            f"As many requests as may be open for {where} are open ({draw.limit}). Please try again when one has ended."
        )
        return Refused(ConcurrencyExceeded(said, retry_after_s=OPEN_RETRY_S), Decision.REFUSED_CONCURRENCY)
    if of.what == BUDGET:
        return Refused(
            BudgetExceeded(f"The month's budget of {where} is used up.", retry_after_s=wait_s), Decision.REFUSED_BUDGET
        )
    if draw.kind is Kind.WINDOW:
        span = "day" if of.what == TOKENS_PER_DAY else "month"
        said = f"This request needs about {draw.amount} tokens, more than are left of the {span}'s {draw.limit} for {where}."
        return Refused(QuotaExceeded(said, retry_after_s=wait_s), Decision.REFUSED_QUOTA)
    counts_tokens = of.what == TOKENS_PER_MINUTE
    unit = "tokens" if counts_tokens else "requests"
    if wait_s is None:
        said = f"This request needs about {draw.amount} {unit}, and the limit for {where} is {draw.limit} a minute."
        return Refused(TooLargeForLimit(said, counts_tokens=counts_tokens), Decision.REFUSED_RATE)
    said = (
        f"Rate limit reached for {where} on {unit} per minute: limit {draw.limit}, requested about {draw.amount}. "
        f"Please try again in {duration(verdict.retry_in_us or 0)}."
    )
    return Refused(RateLimitExceeded(said, counts_tokens=counts_tokens, retry_after_s=wait_s), Decision.REFUSED_RATE)


def is_over_soft_budget(plan: Plan, verdict: Verdict) -> bool:
    """Is more of the month's money spent or reserved than the soft limit of the tenant or the key says?"""
    for place in plan.soft:
        slot = plan.slots[place]
        if slot.soft_limit is not None and slot.limit - verdict.levels[place].remaining > slot.soft_limit:
            return True
    return False


def headers(plan: Plan, verdict: Verdict, now_s: float, *, is_anthropic: bool) -> list[Header]:
    """`x-ratelimit-…` as OpenAI sends them, or Anthropic's own: of several limits on the same thing the one that is nearest.

    https://platform.openai.com/docs/guides/rate-limits, https://docs.anthropic.com/en/api/rate-limits
    """
    levels = verdict.levels
    said: list[Header] = []
    for unit, places in plan.rates:
        nearest = places[0] if len(places) == 1 else min(places, key=lambda it: levels[it].remaining)
        limit, level = plan.slots[nearest].limit, levels[nearest]
        if is_anthropic:
            names, resets = _ANTHROPIC[unit], _moment(now_s, level.resets_in_us)
        else:
            names, resets = _OPENAI[unit], duration(level.resets_in_us)
        said += zip(names, (b"%d" % limit, b"%d" % level.remaining, resets.encode()), strict=True)
    return said


def duration(us: int) -> str:
    """A time as OpenAI's headers have it: `6m0s`, `1.5s`, `20ms`, rounded up to a millisecond."""
    ms = -(-us // 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    seconds = f"{rest_ms / 1000:g}s"
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + seconds


def _moment(now_s: float, in_us: int) -> str:
    return datetime.fromtimestamp(int(now_s) - (-in_us // S_US), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Windows(msgspec.Struct, frozen=True):
    """The day and the month that are now: when each began in seconds, and when it ends in microseconds."""

    day_s: int
    day_ends_us: int
    month_s: int
    month_ends_us: int


@lru_cache(maxsize=4)
def _windows(day: int) -> _Windows:
    today = datetime.fromtimestamp(day * DAY_S, UTC)
    month = today.replace(day=1)
    next_month = (month + timedelta(days=32)).replace(day=1)
    begun_s, ends_s = int(month.timestamp()), int(next_month.timestamp())
    return _Windows(day * DAY_S, (day + 1) * DAY_S * S_US, begun_s, ends_s * S_US)


def _of_policy(tenant_id: str, key_id: str, policy: Policy, model: str, windows: _Windows) -> Iterator[Slot]:
    for of_model, limits in policy.limits_for(model):
        whose = f"{key_id}/{of_model or ALL}"
        yield from _of_limits(tenant_id, whose, limits, windows)
    if (budget := policy.monthly_budget) is not None and (budget.hard, budget.soft) != (None, None):
        # Without a hard limit it is only counted.
        most = policies.COUNT_MAX if budget.hard is None else round(budget.hard * MICROS)
        name = f"{tenant_id}/{BUDGET}/{windows.month_s}/{key_id}/{ALL}"
        soft = None if budget.soft is None else budget.soft * MICROS
        yield Slot(BUDGET, name, Kind.WINDOW, most, 3, ends_at_us=windows.month_ends_us, soft_limit=soft)


def _of_limits(tenant_id: str, whose: str, limits: Limits, windows: _Windows) -> Iterator[Slot]:
    if (most := limits.open_requests) is not None:
        yield Slot(OPEN_REQUESTS, f"{tenant_id}/{OPEN_REQUESTS}/0/{whose}", Kind.OPEN, most, 0)
    for what, most, unit in (
        (REQUESTS_PER_MINUTE, limits.requests_per_minute, 1),
        (TOKENS_PER_MINUTE, limits.tokens_per_minute, 2),
    ):
        if most is not None:
            yield Slot(what, f"{tenant_id}/{what}/0/{whose}", Kind.RATE, most, unit, period_us=MINUTE_US)
    for what, most, since_s, ends_us in (
        (TOKENS_PER_DAY, limits.tokens_per_day, windows.day_s, windows.day_ends_us),
        (TOKENS_PER_MONTH, limits.tokens_per_month, windows.month_s, windows.month_ends_us),
    ):
        if most is not None:
            yield Slot(what, f"{tenant_id}/{what}/{since_s}/{whose}", Kind.WINDOW, most, 2, ends_at_us=ends_us)


_UNITS = {REQUESTS_PER_MINUTE: "requests", TOKENS_PER_MINUTE: "tokens"}
#: What is counted → names of the headers with its limit, what is left of it, and when it is whole again.
_SAID = ("limit", "remaining", "reset")
_OPENAI = {unit: [f"x-ratelimit-{it}-{unit}".encode() for it in _SAID] for unit in _UNITS.values()}
_ANTHROPIC = {unit: [f"anthropic-ratelimit-{unit}-{it}".encode() for it in _SAID] for unit in _UNITS.values()}
_ORDER = (OPEN_REQUESTS, REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE, TOKENS_PER_DAY, TOKENS_PER_MONTH, BUDGET)
