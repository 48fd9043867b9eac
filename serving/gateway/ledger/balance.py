"""Balance: does the ledger say what engines counted? The sums of one replica's calls against vLLM's own counters, less what its own
questions have cost. Pure, but for `billed`, which reads the ledger.

Calls that completed must agree to the token. Others may have cost more than is billed, and each is named that can have: a stream that
was cut, an attempt that failed, a call that still runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import msgspec
from sqlalchemy import ColumnElement, Row, and_, case, func, literal, or_, select

from serving.gateway.ledger.rows import CRASHED, OPEN
from serving.gateway.nouns import Outcome
from serving.gateway.store.store import Store
from serving.gateway.store.tables import ledger

#: Calls that are named of one replica.
NAMED_MAX = 20


class Counts(msgspec.Struct, frozen=True):
    """Prompt and generated tokens."""

    prompt_tokens: int = 0
    generation_tokens: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.prompt_tokens + other.prompt_tokens, self.generation_tokens + other.generation_tokens)

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.prompt_tokens - other.prompt_tokens, self.generation_tokens - other.generation_tokens)

    @property
    def is_nothing(self) -> bool:
        return self == Counts()

    @property
    def is_less_than_nothing(self) -> bool:
        return self.prompt_tokens < 0 or self.generation_tokens < 0


class Why(StrEnum):
    """Why an engine may have counted more of a call than is billed to it."""

    #: Still open: its tokens are not known yet.
    OPEN = "open"
    #: Its gateway died.
    CRASHED = "gateway_crashed"
    #: An attempt failed, here or at another replica of its model; its tokens are in that engine's counters alone.
    RETRIED = "attempts_failed"
    #: It went on here, or elsewhere: the tokens that its client had were prompt once more.
    CONTINUED = "continued"
    #: Its stop string was matched by the gateway, and its engine went on for some tokens.
    STOPPED = "stopped_here"
    #: It did not end well, or no engine said what it cost.
    CUT = "cut_or_estimated"


class Suspect(msgspec.Struct, frozen=True):
    """A call that may explain a difference, and what is billed for it."""

    request_id: str
    why: Why
    replica_id: str | None
    outcome: str
    estimated_by: str | None
    attempts: int
    billed: Counts


class Billed(msgspec.Struct, frozen=True):
    """What the ledger has of one replica."""

    completed_requests: int
    #: Of calls that completed, as their engine must have counted them.
    completed: Counts
    suspects: int
    #: The newest of them, `NAMED_MAX` at most.
    named: tuple[Suspect, ...]


class Counted(msgspec.Struct, frozen=True):
    """What an engine says of itself at one moment."""

    replica_id: str
    model: str
    #: vLLM's counters since its start.
    counters: Counts
    #: What its replica's own questions have cost of that, and how many of them had no answer.
    own: Counts = Counts()
    own_unanswered: int = 0
    #: Requests that it computes or queues now.
    requests: int = 0
    #: Seconds since the epoch; None where it does not say.
    started_at: float | None = None


class Verdict(StrEnum):
    """What a comparison shows."""

    #: To the token.
    EQUAL = "equal"
    #: The engine counted more, and there are calls that can have cost that.
    EXPLAINED = "explained"
    #: It computes something now: nothing follows, but that it has not counted less than was billed.
    BUSY = "busy"
    #: It counted less than completed calls are billed for, or more than any known call can have cost.
    UNEXPLAINED = "unexplained"


class Balance(msgspec.Struct, frozen=True):
    """One replica's comparison."""

    counted: Counted
    billed: Billed

    @property
    def left(self) -> Counts:
        """What the engine counted besides its own questions and completed calls."""
        return self.counted.counters - self.counted.own - self.billed.completed

    @property
    def verdict(self) -> Verdict:
        if self.left.is_less_than_nothing:
            return Verdict.UNEXPLAINED
        if self.counted.requests:
            return Verdict.BUSY
        if self.left.is_nothing:
            return Verdict.EQUAL
        return Verdict.EXPLAINED if self.billed.suspects or self.counted.own_unanswered else Verdict.UNEXPLAINED


def billed(store: Store, counted: Counted) -> Billed:
    """What the ledger has of a replica since its engine started; raises StoreUnavailable.

    Its completed calls, and all that may have cost it something: those of its own, those of its model whose attempts failed
    anywhere, and those of which a dead or running gateway has not said yet which model they are for.
    """
    is_here = ledger.c.replica_id == counted.replica_id
    in_time = [] if counted.started_at is None else [_is_over_since(counted.started_at)]
    completed = select(
        func.count(),
        func.coalesce(func.sum(ledger.c.prompt_tokens * _PROMPTS), 0),
        func.coalesce(func.sum(ledger.c.completion_tokens), 0),
    ).where(is_here, _IS_COMPLETED, *in_time)
    is_of_model = func.coalesce(ledger.c.base_model, ledger.c.model) == counted.model
    may_have_been_here = or_(is_here, and_(is_of_model, ledger.c.attempts > 0), ledger.c.outcome.in_((OPEN, CRASHED)))
    others = select(ledger).where(may_have_been_here, ~and_(is_here, _IS_COMPLETED), *in_time)
    newest = others.where(_HAS_COST).order_by(ledger.c.started_at.desc()).limit(NAMED_MAX)
    with store.snapshot() as connection:
        requests, prompt, completion = connection.execute(completed).one()
        suspects = connection.scalar(select(func.count()).select_from(others.where(_HAS_COST).subquery())) or 0
        named = tuple(_suspect(row) for row in connection.execute(newest))
    return Billed(int(requests), Counts(int(prompt), int(completion)), suspects, named)


def _is_over_since(epoch_s: float) -> ColumnElement[bool]:
    """A call that an engine with this start can have had: it may have begun before, and waited for it."""
    has_no_end = and_(ledger.c.finished_at.is_(None), or_(ledger.c.outcome == OPEN, ledger.c.started_at >= epoch_s))
    return or_(ledger.c.finished_at >= epoch_s, has_no_end)


# `choices=N`: an engine counts the prompt N times.
_IS_APART = or_(ledger.c.counted_apart.contains("continued"), ledger.c.counted_apart.contains("stopped_here"))
_IS_COMPLETED = and_(
    ledger.c.outcome == Outcome.OK,
    ledger.c.estimated_by.is_(None),
    func.coalesce(ledger.c.attempts, 0) == 0,
    or_(ledger.c.counted_apart.is_(None), ~_IS_APART),
)
_PROMPTS = case(
    *((ledger.c.counted_apart == f"choices={number}", literal(number)) for number in range(2, 9)), else_=literal(1)
)
#: A call that was refused before it came to an engine has cost none.
_HAS_COST: ColumnElement[bool] = or_(ledger.c.replica_id.is_not(None), ledger.c.outcome.in_((OPEN, CRASHED)))


def _suspect(row: Row[*tuple[object, ...]]) -> Suspect:
    said = row._mapping
    return Suspect(
        request_id=said["request_id"],
        why=_why(said["outcome"], said["attempts"] or 0, said["counted_apart"] or ""),
        replica_id=said["replica_id"],
        outcome=said["outcome"],
        estimated_by=said["estimated_by"],
        attempts=said["attempts"] or 0,
        billed=Counts(said["prompt_tokens"], said["completion_tokens"]),
    )


def _why(outcome: str, attempts: int, counted_apart: str) -> Why:
    if outcome in (OPEN, CRASHED):
        return Why(outcome)
    return next(_reasons(attempts, counted_apart))


def _reasons(attempts: int, counted_apart: str) -> Iterator[Why]:
    words = counted_apart.split(",")
    yield from (why for why in (Why.CONTINUED, Why.STOPPED) if why in words)
    if attempts:
        yield Why.RETRIED
    yield Why.CUT
