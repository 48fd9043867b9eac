"""Reservations: what a call may cost is reserved before an engine is asked, topped up while it streams, and settled to the truth on
every way out.

    async with reservations.held(caller, call, record, …):   # raises the 429s of `limits`
        …                                                    # the engine answers; `record.usage` says what it came to
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from itertools import count
from typing import Protocol, Self

import msgspec

from serving.gateway.admission import limits
from serving.gateway.admission.bounds import Bounds
from serving.gateway.admission.counters.counter import Counters, Draw, Kind, Level
from serving.gateway.admission.doubts import Doubts
from serving.gateway.admission.estimates import Estimates
from serving.gateway.admission.limits import Cost, Plan, Plans, Slot
from serving.gateway.admission.quantiles import Quantiles
from serving.gateway.dialects.call import Call
from serving.gateway.dialects.dialect import Dialect
from serving.gateway.http.asgi import Header
from serving.gateway.identity.changes import News
from serving.gateway.ledger.prices import Price
from serving.gateway.nouns import Caller, CallRecord

#: Seconds between two looks at streams that may have outgrown what was reserved for them.
LOOK_S = 1.0


class Announced(Protocol):
    """The answer to be, as far as limits have something to say in it."""

    @property
    def is_anthropic(self) -> bool: ...

    def announce(self, *headers: Header) -> None: ...


class Asking(msgspec.Struct, frozen=True):
    """One call that asks to be admitted."""

    caller: Caller
    model: str
    plan: Plan
    #: None: its model has none.
    price: Price | None
    #: The engine computes tokens for it.
    is_billed: bool
    prompt_tokens: int
    #: Sequences that the engine generates.
    sequences: int
    #: Output tokens at most, of all sequences; None where the client sets no limit.
    output_tokens_max: int | None
    #: Output tokens that engines have made of it so far.
    made: Callable[[], int]
    answer: Announced


class Held(msgspec.Struct, frozen=True):
    """A limit, and what is left of it."""

    slot: Slot
    level: Level


class Reservations:
    """Those of all calls of a gateway."""

    def __init__(
        self,
        counters: Counters,
        price_of: Callable[[str, str | None], Price | None],
        estimates: Estimates,
        wall_clock: Callable[[], float],
        look_s: float = LOOK_S,
    ) -> None:
        self._counters = counters
        self._estimates = estimates
        self._price_of = price_of
        self._wall_clock = wall_clock
        self._look_s = look_s
        self._plans = Plans()
        self._doubts = Doubts()
        self._quantiles = Quantiles()
        #: Leases are this and a number: to ask for randomness for each took 2 us of a call.
        self._run, self._numbers = secrets.token_hex(8), count()
        #: Those that may grow.
        self._growing: dict[str, Reservation] = {}
        self._look: asyncio.TimerHandle | None = None

    def follow(self, news: News) -> None:
        """Operators have changed something: what is counted for limits that may be new is read anew."""
        self._doubts.follow(news)

    def default_output_tokens(
        self, caller: Caller, dialect: Dialect, model: str, default: int | None, body_bytes: int
    ) -> int | None:
        """The limit of a call that sets none; see `bounds`."""
        if not limits.are_set(caller):
            return _UNBOUND.default_output_tokens(default)
        prompt_tokens = self._estimates.rates(model, dialect.path).tokens_of(body_bytes)
        return self._plan(caller, model).bounds.default_output_tokens(default, prompt_tokens)

    def held(
        self, caller: Caller, call: Call, record: CallRecord, *, made: Callable[[], int], answer: Announced
    ) -> AbstractAsyncContextManager[object]:
        """The call's cost is reserved while inside, and settled at the end. Raises InvalidRequest where it is beyond `bounds`."""
        if not limits.are_set(caller):
            return _FREE
        dialect = call.dialect
        prompt_tokens = self._estimates.rates(call.model, dialect.path).prompt_tokens(call) if dialect.is_billed else 0
        plan = self._plan(caller, call.model)
        plan.bounds.require_fitting(call, prompt_tokens)
        if not plan.slots:
            return _FREE
        most = _output_tokens_max(call)
        price = self._price_of(call.model, record.base_model)
        asking = Asking(
            caller, call.model, plan, price, dialect.is_billed, prompt_tokens, call.sequences, most, made, answer
        )
        return Reservation(self, asking, record)

    def new_lease(self) -> str:
        """A name that no reservation has had, of any gateway."""
        return f"{self._run}{next(self._numbers):x}"

    def estimated(self, asking: Asking) -> Cost:
        """What a call will probably cost."""
        if not asking.is_billed:
            return Cost()
        output_tokens = asking.output_tokens_max
        if output_tokens is None:
            output_tokens = self._usual_tokens(asking)
        micros = asking.price.at_most(asking.prompt_tokens, output_tokens) if asking.price else 0
        return Cost(1, asking.prompt_tokens + output_tokens, asking.prompt_tokens, micros)

    async def reserve(self, reservation: Reservation) -> tuple[Header, ...]:
        """Raises what refuses the call; returns headers for its answer."""
        asking = reservation.asking
        plan, cost = asking.plan, self.estimated(asking)
        draws = plan.draws(cost)
        if doubted := self._doubts.of(plan, asking.caller.tenant_id, asking.caller.key_id):
            self._counters.doubt(doubted)
        verdict = await self._counters.reserve(reservation.lease, draws)
        headers = limits.headers(plan, verdict, self._wall_clock(), is_anthropic=asking.answer.is_anthropic)
        if verdict.refused is not None:
            refused = limits.refused(asking.caller, draws, verdict)
            asking.answer.announce(*headers)
            reservation.record.decision = refused.decision
            raise refused.error
        reservation.draws, reservation.tokens = draws, cost.tokens
        if limits.is_over_soft_budget(plan, verdict):
            reservation.record.is_over_soft_budget = True
            headers.append((b"x-budget-state", b"over_soft_limit"))
        if asking.is_billed and asking.output_tokens_max is None:
            self._growing[reservation.lease] = reservation
            self._look_later()
        return tuple(headers)

    async def levels(self, caller: Caller) -> list[Held]:
        """How much of each of its limits a caller's calls have taken, on all gateways. What may be open is not told: to ask is to take.

        Raises StoreUnavailable.
        """
        slots = [it for it in limits.everything(caller, self._wall_clock()) if it.kind is not Kind.OPEN]
        lease, draws = self.new_lease(), [limits.look(it) for it in slots]
        verdict = await self._counters.reserve(lease, draws)
        if verdict.refused is None:
            self._counters.settle(lease, draws, [0] * len(draws))
        return [Held(slot, level) for slot, level in zip(slots, verdict.levels, strict=True)]

    def settle(self, reservation: Reservation) -> None:
        """What the record says is what it was."""
        asking, record = reservation.asking, reservation.record
        self._growing.pop(reservation.lease, None)
        usage = record.usage
        # As the ledger has it: the price may have changed meanwhile.
        price = self._price_of(asking.model, record.base_model)
        cost = Cost(
            requests=int(record.replica_id is not None),
            tokens=usage.prompt_tokens + usage.completion_tokens,
            micros=price.micros(usage) if price else 0,
        )
        self._counters.settle(reservation.lease, reservation.draws, asking.plan.spent(cost))
        if asking.output_tokens_max is None and usage.completion_tokens and usage.estimated_by is None:
            each = -(-usage.completion_tokens // asking.sequences)
            self._quantiles.learn(asking.caller.tenant_id, asking.model, each)

    def _plan(self, caller: Caller, model: str) -> Plan:
        return self._plans.of(caller, model, self._wall_clock())

    def _usual_tokens(self, asking: Asking) -> int:
        """Output tokens that nine of ten calls like it do not exceed."""
        return asking.sequences * self._quantiles.tokens(asking.caller.tenant_id, asking.model)

    def _look_later(self) -> None:
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(self._look_s, self._top_up)

    def _top_up(self) -> None:
        """Reserve more for streams that have made more than was reserved for them; once, for all."""
        self._look = None
        for reservation in self._growing.values():
            self._grow(reservation)
        if self._growing:
            self._look_later()

    def _grow(self, reservation: Reservation) -> None:
        asking = reservation.asking
        made = asking.prompt_tokens + asking.made()
        if made <= reservation.tokens:
            return
        # As much again as nine of ten calls need in all, so that a long answer asks seldom.
        more = made - reservation.tokens + self._usual_tokens(asking)
        cost = Cost(0, more, 0, asking.price.at_most(0, more) if asking.price else 0)
        draws = [
            msgspec.structs.replace(draw, amount=amount)
            for draw, amount in zip(reservation.draws, asking.plan.spent(cost), strict=True)
            if amount
        ]
        self._counters.top_up(reservation.lease, draws)
        reservation.tokens += more


#: A call that no policy bounds reserves nothing.
_UNBOUND, _FREE = Bounds(), nullcontext()


class Reservation:
    """One call's, inside `async with`."""

    def __init__(self, reservations: Reservations, asking: Asking, record: CallRecord) -> None:
        self._reservations = reservations
        self.asking = asking
        self.record = record
        self.lease = reservations.new_lease()
        self.draws: list[Draw] = []
        #: Prompt and output tokens that it has reserved by now.
        self.tokens = 0

    async def __aenter__(self) -> Self:
        self.asking.answer.announce(*await self._reservations.reserve(self))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.draws:
            self._reservations.settle(self)


def _output_tokens_max(call: Call) -> int | None:
    """Of all sequences, where the client says it or there is no output; a model's default is no measure of its answers."""
    if call.dialect.stream is None:
        return 0
    if call.limit_field is None or call.output_tokens_max is None:
        return None
    return call.sequences * call.output_tokens_max
