"""Nouns: what every room of the gateway speaks of. Imports policies and no other room; all of them import this one.

The `CallRecord` is the one account of a request: rooms fill it in while the request runs, it is frozen at the end, and the log
line, the ledger row, the metrics and the span are renderings of it. A new fact about a call is a field here and one line where
it becomes known.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from enum import StrEnum
from itertools import accumulate

import msgspec

from serving.gateway.policies import NO_POLICY, Policy

#: Upper bounds in seconds of the gaps between tokens: from a small model's steps on a GPU to an engine that stalls.
ITL_BUCKETS_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10)


class ClientLeft(Exception):
    """The client closed the connection before it had its answer."""


class Right(StrEnum):
    """What a key may do that others may not: operators grant it (`serving keys create --allow`)."""

    #: Generate past the end of an answer (`ignore_eos`, `min_tokens`), as load tests do.
    IGNORE_EOS = "ignore_eos"
    #: Say in a header who the end user is, as a service before many people does.
    NAME_USERS = "name_users"


class Role(StrEnum):
    """What a caller may administer."""

    #: Nothing: it calls models.
    MEMBER = "member"
    #: Its tenant's keys, their policies, its usage and audit.
    TENANT_ADMIN = "tenant_admin"
    #: Everything.
    PLATFORM_ADMIN = "platform_admin"


#: In place of a key's id where a token of the company's single sign-on was presented.
OIDC = "oidc"


class Caller(msgspec.Struct, frozen=True):
    """Who is calling: the tenant that pays and the key that was presented (its id, never the key)."""

    tenant_id: str
    tenant: str
    #: Or `oidc`.
    key_id: str
    rights: frozenset[Right] = frozenset()
    role: Role = Role.MEMBER
    tenant_policy: Policy = NO_POLICY
    key_policy: Policy = NO_POLICY
    #: The end user, where a token or a trusted service names one: a reference into `end_users`, and no name.
    user_ref: str | None = None

    @property
    def credential(self) -> str:
        """What tells calls by one key, or by one person's tokens, from all others."""
        return self.key_id if self.key_id != OIDC else f"{OIDC}:{self.user_ref}"


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one call. `estimated_by` names the rule when the engine could not say; None means exact."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    reasoning_tokens: int = 0
    estimated_by: str | None = None


class Route(msgspec.Struct, frozen=True):
    """A route as logs and metrics name it: few and bounded, whatever clients ask for."""

    label: str
    #: An engine computes tokens for it that are billed; its SLO is judged.
    is_billed: bool = False


OTHER_ROUTE = Route("other")


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    #: The client's mistake: a 4xx.
    REJECTED = "rejected"
    #: Ours, or an engine's: a 5xx, or an error event in a stream.
    FAILED = "error"
    #: The client left.
    DISCONNECTED = "client_disconnected"
    #: This gateway stopped first.
    CANCELLED = "cancelled"


class Decision(StrEnum):
    """What admission decided about a call."""

    ADMITTED = "admitted"
    #: Admitted after a wait for a replica.
    WAITED = "waited"
    #: Too many requests are open, or wait already.
    REFUSED_FULL = "refused_full"
    #: No replica could take it in time, or its client left while it waited.
    REFUSED_WAIT = "refused_wait"
    #: Its key's calls were refused in bulk just before.
    REFUSED_KEY = "refused_key"
    #: Its tenant or key has had its requests or tokens of the minute.
    REFUSED_RATE = "refused_rate"
    #: Its tenant or key has as many calls open as it may.
    REFUSED_CONCURRENCY = "refused_concurrency"
    #: The tokens of its day or month are used up.
    REFUSED_QUOTA = "refused_quota"
    #: The money of its month is used up.
    REFUSED_BUDGET = "refused_budget"


class Queued(StrEnum):
    """What became of a call for which the fleet had no room at once."""

    #: It got a place, and none that came later had one before it.
    IN_TURN = "in_turn"
    #: It got a place after one that came later: of a class before its own, or of a tenant that had had less.
    OVERTAKEN = "overtaken"
    #: The line was full, or its time was over.
    REFUSED = "refused"
    #: Its client left while it waited.
    LEFT = "left"


class Failure(StrEnum):
    """How an attempt at a replica failed before the client had any of the answer."""

    #: The replica's address refuses connections.
    REFUSED = "refused"
    #: The connection broke: the engine died, or the connection was stale.
    BROKEN = "broken"
    #: The engine answered that it failed.
    ERRORED = "errored"
    #: The engine answered 200 with something that is no answer of the route.
    MALFORMED = "malformed"
    #: Its cell said that the engine has failed, or no longer lists it.
    EJECTED = "ejected"
    #: The engine cannot take the call now.
    BUSY = "busy"
    #: The replica is to leave, and another one goes on with the stream.
    DRAINED = "drained"


class Handover(StrEnum):
    """What became of a prompt that another engine than the one that decodes was to compute."""

    DONE = "done"
    FAILED = "failed"


class InterTokenLatency:
    """Histogram of the seconds between two pieces of a stream (ITL).

    prometheus-client takes a lock and several function calls for each observation, which is fine per request and not per
    token: a stream counts its own gaps, and its model's totals take them all at once when it ends.
    """

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(ITL_BUCKETS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(ITL_BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def add(self, other: InterTokenLatency) -> None:
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total_s += other.total_s

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus has them."""
        bounds = [*(repr(float(bound)) for bound in ITL_BUCKETS_S), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class CallRecord(msgspec.Struct, kw_only=True):
    """Everything known of one request. Moments (`…_at`) are on the gateway's monotonic clock, durations in seconds.

    Raises AttributeError when a field is assigned to after `freeze()`.
    """

    request_id: str
    started_at: float
    route: Route = OTHER_ROUTE
    #: The trace it belongs to: the client's, or one of its own; empty when none is kept.
    trace_id: str = ""

    # identify
    caller: Caller | None = None
    #: The batch of which it is a line: no client waits for it.
    batch_id: str | None = None
    #: Its row in the ledger, empty while none is open, and when that was opened in seconds since the epoch.
    entry_id: str = ""
    opened_at_epoch_s: float = 0.0

    # read and resolve
    #: Seconds in which the rest of the body had yet to come.
    body_s: float = 0.0
    #: The body as it was sent, where `gateway.log_prompts` says so.
    prompt: str | None = None
    model: str | None = None
    #: Of an adapter, the model it belongs to.
    base_model: str | None = None
    #: The fleet lists this model: only then may its name label a metric.
    is_model_listed: bool = False
    is_streamed: bool = False

    # admit
    #: Its body was in order and its model known: it asked for an engine.
    asked_for_engine: bool = False
    decision: Decision | None = None
    #: The class it waits in.
    priority: str | None = None
    #: Seconds it waited for a replica that could take it.
    waited_s: float = 0.0
    #: Of these, for a place in a full fleet, and what became of it there; None where it had one at once.
    queued_s: float = 0.0
    queued: Queued | None = None
    #: More of the month's money is spent than its tenant's or key's soft limit says.
    is_over_soft_budget: bool = False

    # relay
    replica_id: str | None = None
    #: `Failure` → attempts at replicas that ended so.
    failures: Counter[str] = msgspec.field(default_factory=Counter)
    #: `Handover` → attempts to have its prompt computed elsewhere that ended so.
    handovers: Counter[str] = msgspec.field(default_factory=Counter)
    #: Replicas whose addresses refused connections.
    replicas_lost: int = 0
    #: Attempts that the model's retry budget paid for, and whether it had none left for one more.
    retries_granted: int = 0
    is_retry_refused: bool = False
    #: Engines that went on with the stream of one that was lost.
    continuations: int = 0
    #: Why its engine counted more tokens than it is billed, in words with commas between: `choices=3`, `continued`, `stopped_here`.
    counted_apart: str | None = None
    #: Replicas that were ejected for this call's failure and those before it.
    replicas_ejected: int = 0
    first_byte_at: float | None = None
    #: Seconds that writes waited because the client read more slowly than the engine wrote.
    reading_s: float = 0.0
    bytes_relayed: int = 0
    keep_alives: int = 0
    inter_token: InterTokenLatency | None = None
    usage: Usage = Usage()

    # settle
    #: What the client saw, or would have seen.
    status: int = 500
    outcome: Outcome = Outcome.FAILED
    #: The error's code when it did not end well.
    reason: str = ""
    ended_at: float | None = None
    #: Millionths of the currency; None where its model has no price.
    price_micros: int | None = None

    def freeze(self) -> None:
        """The request is over; from here on the record is only read."""
        # Another class, and not a flag: asked at every assignment, that took 10 us of each request.
        self.__class__ = _FrozenRecord

    @property
    def is_frozen(self) -> bool:
        return False

    @property
    def tenant(self) -> str | None:
        return self.caller.tenant if self.caller else None

    @property
    def retries(self) -> int:
        """Attempts at replicas that failed."""
        return self.failures.total()

    @property
    def duration_s(self) -> float:
        return (self.started_at if self.ended_at is None else self.ended_at) - self.started_at

    @property
    def client_s(self) -> float:
        """Seconds that the client took, sending its body and reading what was ready for it."""
        return self.body_s + self.reading_s

    @property
    def served_s(self) -> float:
        """Seconds that were ours: what an SLO judges."""
        return self.duration_s - self.client_s

    @property
    def ttft_s(self) -> float | None:
        """Seconds to a stream's first byte, without what the client took to send its body."""
        if not self.is_streamed or self.first_byte_at is None:
            return None
        return self.first_byte_at - self.started_at - self.body_s


class _FrozenRecord(CallRecord):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"the call is over: its {name} can no longer change")

    @property
    def is_frozen(self) -> bool:
        return True
