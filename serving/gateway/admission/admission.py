"""Admission: the only way from a checked call to a replica.

async with admission.within_limits(caller, call, record, …):
    with await admission.admit(call, record) as ticket:
        …
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Self

import msgspec

from serving.config import GatewaySettings
from serving.errors import ApiError, GatewayFull, NoReplicaReady, RateLimitExceeded
from serving.gateway.admission.estimates import Estimates
from serving.gateway.admission.gate import Gate
from serving.gateway.admission.line import Claim, Depth, Line, Place, claim_of
from serving.gateway.admission.memory import Memory, Share
from serving.gateway.admission.refusals import Refusals
from serving.gateway.admission.waiting_room import WaitingRoom
from serving.gateway.dialects.call import Call
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet, Watcher
from serving.gateway.fleet.router import Candidate, Need
from serving.gateway.fleet.standing import Commitment
from serving.gateway.nouns import Caller, CallRecord, Decision, Queued

#: Seconds before a replica that could not take a call is asked again.
PAUSE_S = 0.25


log = logging.getLogger(__name__)


async def _say_nothing() -> None:
    return None


class Admission:
    """Decides for all calls of a gateway."""

    def __init__(
        self,
        fleet: Fleet,
        demands: Demands,
        estimates: Estimates,
        settings: GatewaySettings,
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._demands = demands
        self._estimates = estimates
        self._timeouts = settings.timeouts
        self._clock = clock
        self._gate = Gate(settings.max_open_requests, Memory(settings.max_held_bytes))
        self._room = WaitingRoom(fleet, demands, settings.max_waiting_requests, clock)
        self._line = Line(fleet, demands, settings, clock)
        self._refusals = Refusals(settings.retries.refused_per_key, clock)

    def depths(self) -> Iterator[Depth]:
        """The calls that wait for room."""
        return self._line.depths()

    def entered(self, record: CallRecord) -> AbstractContextManager[Share]:
        """A request is open while inside, its body yet to be read into its share of the memory; raises GatewayFull."""
        return self._gate.entered(record)

    def within_refusals(self, caller: Caller, record: CallRecord) -> Counted:
        """A call of this key runs inside, its body yet to be read; raises GatewayFull when too many of its calls were refused.

        What broke off after its beginning was no refusal.
        """
        return Counted(self._refusals, caller.credential, record)

    async def admit(
        self, call: Call, record: CallRecord, keep_alive: Callable[[], Awaitable[None]] = _say_nothing
    ) -> Ticket:
        """The right to use replicas, until the end of its `with`; a replica of the call's model is ready and has room when it has it.

        Raises GatewayFull when too many wait for the model, and NoReplicaReady when none was ready or had room in time. While it
        waits for room `keep_alive` is called every now and then.
        """
        record.asked_for_engine = True
        model = call.model
        rates = self._estimates.rates(model, call.dialect.path)
        need = rates.need(call)
        base, is_line = self._fleet.base_of(model), record.batch_id is not None
        if self._fleet.lists(model) and not is_line:  # other names are a client's, and without number
            self._demands.arrive(base, need.prompt_tokens, need.output_tokens)
        is_woken = self._fleet.may_sleep(model) and not self._fleet.is_ready(model)
        wait_s = self._timeouts.wake_wait_s if is_woken else self._timeouts.replica_wait_s
        claim = _Claim(model, self._clock() + wait_s, need, self._timeouts.replica_wait_s)
        counted = self._demands.line(base) if is_line else nullcontext()
        ticket = Ticket(self._fleet, self._room, claim, record, self._clock, counted)
        await ticket.wait_for_first()
        if call.dialect.is_billed:
            is_streamed = call.is_streamed or call.is_assembled
            base = self._fleet.base_of(model)
            asked = claim_of(record.caller, base, need, is_streamed=is_streamed, is_line=is_line)
            record.priority = asked.priority
            await ticket.wait_in(self._line, asked, keep_alive)
        return ticket


class Counted:
    """A call whose refusal, by whatever raises inside `with`, counts against its key."""

    def __init__(self, refusals: Refusals, key_id: str, record: CallRecord) -> None:
        self._refusals = refusals
        self._key_id = key_id
        self._record = record

    def __enter__(self) -> None:
        try:
            self._refusals.require(self._key_id)
        except (GatewayFull, RateLimitExceeded):
            self._record.decision = Decision.REFUSED_KEY
            raise

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            self._refusals.admitted(self._key_id)
        elif isinstance(error, ApiError) and error.is_retryable and self._record.first_byte_at is None:
            self._refusals.refused(self._key_id, error)


class _Claim(msgspec.Struct, frozen=True):
    """What one call asks of the fleet."""

    model: str
    #: On the clock: when its time to wait for a replica is over.
    deadline: float
    need: Need
    #: Seconds it waits for a replica that goes on with its stream.
    renewed_s: float


class Ticket:
    """One admitted call's right to replicas."""

    def __init__(
        self,
        fleet: Fleet,
        room: WaitingRoom,
        claim: _Claim,
        record: CallRecord,
        clock: Callable[[], float],
        counted: AbstractContextManager[None],
    ) -> None:
        self._counted = counted
        self._fleet = fleet
        self._room = room
        self._claim = claim
        self._record = record
        self._clock = clock
        self._commitment: Commitment | None = None
        self._place: Place | None = None

    def __enter__(self) -> Self:
        self._counted.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """The call is over: its place is another's, and what it has cost is known."""
        self._counted.__exit__(None, None, None)
        if self._place is not None:
            usage = self._record.usage
            self._place.leave(usage.prompt_tokens, usage.completion_tokens)
            self._place = None

    @property
    def need(self) -> Need:
        """What the call asks of a replica, estimated."""
        return self._claim.need

    @property
    def urgency(self) -> int:
        """What engines are told of it: of those that wait there the least goes first, and 0 is what they take for granted."""
        return self._place.urgency if self._place is not None else 0

    async def wait_for_first(self) -> None:
        """Return when a replica is ready; raises as `Admission.admit` does."""
        if self._fleet.is_ready(self._claim.model):
            self._record.decision = Decision.ADMITTED
        else:
            await self._wait()

    async def wait_in(self, queues: Line, asked: Claim, keep_alive: Callable[[], Awaitable[None]]) -> None:
        """Return when the fleet has room for it and it is its turn; raises as `Admission.admit` does."""
        self._place = queues.place_at_once(asked)
        if self._place is not None:
            return
        self._record.queued = Queued.LEFT
        began_at = self._clock()
        try:
            with self._waited():
                self._place = await queues.place(asked, keep_alive)
        except (GatewayFull, NoReplicaReady):
            self._record.queued = Queued.REFUSED
            raise
        finally:
            self._record.queued_s = self._clock() - began_at
        self._record.queued = Queued.OVERTAKEN if self._place.is_overtaken else Queued.IN_TURN

    async def replica(self, suspects: Set[str]) -> Candidate:
        """Where the call goes next: the best one not suspected, else a suspected one after a pause.

        Raises GatewayFull and NoReplicaReady when none is left and none becomes ready in time.
        """
        return await self._next(suspects | self._fleet.outliers.avoided(self._claim.model))

    def committed(self, replica_id: str) -> Commitment:
        """The call is on this replica while inside."""
        self._commitment = self._fleet.committed(replica_id, self._claim.need)
        return self._commitment

    def begun(self) -> None:
        """The replica has sent the call's first token: its prompt is computed."""
        if self._place is not None:
            self._place.begun()
        if self._commitment:
            self._commitment.begun()

    def watch(self, replica_id: str, watcher: Watcher) -> None:
        """From now on `watcher` gets the replica's state whenever its cell has said it."""
        self._fleet.watch(replica_id, watcher)

    def unwatch(self, replica_id: str, watcher: Watcher) -> None:
        """It gets nothing more."""
        self._fleet.unwatch(replica_id, watcher)

    def is_another_ready(self, replica_id: str) -> bool:
        """Could the call leave this replica for another?"""
        return self._fleet.best(self._claim.model, self._claim.need, {replica_id}) is not None

    def count_ready(self) -> int:
        """The model's replicas that are ready."""
        return self._fleet.count_ready(self._claim.model)

    def report_failed(self, replica_id: str) -> None:
        """A call failed there: it is ejected when it is an outlier."""
        if self._fleet.outliers.fail(replica_id, self._claim.model, self.count_ready()):
            log.warning("replica %s: ejected as an outlier", replica_id)
            self._record.replicas_ejected += 1

    def report_served(self, replica_id: str) -> None:
        """A call ended there by no fault of the replica's."""
        self._fleet.outliers.succeed(replica_id)

    def report_lost(self, replica_id: str) -> None:
        """Its address refuses connections: no call gets it until it reports READY again."""
        self._fleet.report_lost(replica_id)
        self._record.replicas_lost += 1

    def renew(self) -> None:
        """The call was answered for a while, and waits anew for a replica that can go on."""
        self._claim = msgspec.structs.replace(self._claim, deadline=self._clock() + self._claim.renewed_s)

    def require_time(self) -> None:
        """Every replica is busy: raises NoReplicaReady once the time to wait for one is over."""
        if self._clock() >= self._claim.deadline:
            raise self.busy()

    def busy(self) -> NoReplicaReady:
        """The error of a call for which every replica is busy."""
        self._record.decision = Decision.REFUSED_WAIT
        return NoReplicaReady(f"The model '{self._claim.model}' is busy; try again soon.", retry_after_s=5)

    async def _next(self, suspects: Set[str]) -> Candidate:
        fleet, model, need = self._fleet, self._claim.model, self._claim.need
        while True:
            if fresh := fleet.best(model, need, suspects):
                return fresh
            if not fleet.is_ready(model):
                await self._wait()
                continue
            with self._waited():
                await asyncio.sleep(PAUSE_S)
            if again := fleet.best(model, need):
                return again

    async def _wait(self) -> None:
        with self._waited():
            await self._room.until_ready(self._claim.model, self._claim.deadline, self._claim.need.prompt_tokens)

    @contextmanager
    def _waited(self) -> Iterator[None]:
        """Count the seconds inside as waiting, and decide by how they end."""
        began_at = self._clock()
        self._record.decision = Decision.REFUSED_WAIT
        try:
            yield
        except GatewayFull:
            self._record.decision = Decision.REFUSED_FULL
            raise
        else:
            self._record.decision = Decision.WAITED
        finally:
            self._record.waited_s += self._clock() - began_at
