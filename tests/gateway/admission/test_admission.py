"""Admission: one decision for each call that asked for an engine, and every place given back."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from serving.config import GatewaySettings, Timeouts
from serving.errors import GatewayFull, NoReplicaReady
from serving.gateway.admission.admission import Admission
from serving.gateway.admission.estimates import Estimates
from serving.gateway.dialects.call import Call
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.messages import COUNT_TOKENS
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.nouns import CallRecord, Decision, Queued
from serving.wire import EngineLoad, ListedModel, ReplicaState
from tests.clock import Clock
from tests.gateway.calls import call
from tests.gateway.fleet.reports import answer, report


class Door:
    """An admission, the fleet behind it, and a call before it."""

    def __init__(self, *, waiting_requests_max: int = 10, replica_wait_s: float = 30.0) -> None:
        self.clock = Clock()
        self.demands = Demands(self.clock)
        self.fleet = Fleet([], self.demands, self.clock, self.clock)
        timeouts = Timeouts(replica_wait_s=replica_wait_s, wake_wait_s=100.0, keep_alive_s=0.01)
        settings = GatewaySettings(max_waiting_requests=waiting_requests_max, timeouts=timeouts)
        self.admission = Admission(self.fleet, self.demands, Estimates(), settings, self.clock)

    def ready(self, *replica_ids: str) -> None:
        self.clock.advance(1)
        self.fleet.take(answer(*map(report, replica_ids)), self.clock.now)

    async def admit(self, record: CallRecord, one: Call | None = None) -> str:
        """The replica that the call got."""
        ticket = await self.admission.admit(one or call(CHAT), record)
        replica = await ticket.replica(set())
        with ticket.committed(replica.replica_id):
            assert self.committed(replica.replica_id) > 0
            return replica.replica_id

    def committed(self, replica_id: str) -> int:
        """Tokens."""
        return next(it.committed_tokens for it in self.fleet.candidates("m") if it.replica_id == replica_id)


def record() -> CallRecord:
    return CallRecord(request_id="r", started_at=0.0)


async def test_a_call_with_a_ready_replica_is_admitted_at_once() -> None:
    """Without a wait, on that replica, whose place it gives back."""
    door, one = Door(), record()
    door.ready("a")
    assert await door.admit(one) == "a"
    assert (one.decision, one.waited_s, one.asked_for_engine) == (Decision.ADMITTED, 0.0, True)
    assert door.committed("a") == 0


async def test_a_prompt_is_committed_until_the_first_token() -> None:
    """From then on only the output is to be computed; calls that are not billed compute nothing."""
    door = Door()
    door.ready("a")
    ticket = await door.admission.admit(call(CHAT), record())
    ticket.begun()  # no replica has it yet
    replica = await ticket.replica(set())
    with ticket.committed(replica.replica_id):
        before = door.committed("a")
        ticket.begun()
        assert 0 < door.committed("a") < before
    assert await door.admit(record(), call(COUNT_TOKENS)) == "a" and door.committed("a") == 0


async def test_a_call_that_waited_says_for_how_long() -> None:
    """From its arrival to the answer that brought a replica."""
    door, one = Door(), record()
    waiting = asyncio.create_task(door.admit(one))
    await asyncio.sleep(0)
    assert one.decision is Decision.REFUSED_WAIT  # whatever ends the wait now
    door.clock.advance(4)
    door.ready("a")
    assert await waiting == "a"
    assert (one.decision, one.waited_s) == (Decision.WAITED, 5.0)


async def test_a_call_past_the_last_place_of_the_waiting_room_is_refused_as_full() -> None:
    """The one that waits keeps its place."""
    door, first, second = Door(waiting_requests_max=1), record(), record()
    waiting = asyncio.create_task(door.admit(first))
    await asyncio.sleep(0)
    with pytest.raises(GatewayFull):
        await door.admit(second)
    assert second.decision is Decision.REFUSED_FULL
    door.ready("a")
    await waiting
    assert first.decision is Decision.WAITED


async def test_a_call_whose_time_is_over_is_refused_by_the_wait() -> None:
    """And no longer counts as demand."""
    door, one = Door(replica_wait_s=0.01), record()
    with pytest.raises(NoReplicaReady):
        await door.admit(one)
    assert one.decision is Decision.REFUSED_WAIT and door.demands.held_requests("m") == 0


async def test_a_client_that_leaves_while_it_waits_was_refused_by_the_wait() -> None:
    """Its seconds are counted, its place in the waiting room is free."""
    door, one = Door(waiting_requests_max=1), record()
    waiting = asyncio.create_task(door.admit(one))
    await asyncio.sleep(0)
    door.clock.advance(3)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (one.decision, one.waited_s) == (Decision.REFUSED_WAIT, 3.0)
    assert door.demands.held_requests("m") == 0


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, NoReplicaReady])
async def test_a_replica_is_free_again_however_its_call_ends(error: type[BaseException]) -> None:
    """The ranking for later calls does not count it."""
    door, one = Door(), record()
    door.ready("a")
    ticket = await door.admission.admit(call(CHAT), one)
    replica = await ticket.replica(set())
    with pytest.raises(error), ticket.committed(replica.replica_id):
        raise error("") if error is NoReplicaReady else error
    assert door.committed("a") == 0 and one.decision is Decision.ADMITTED


async def test_a_suspected_replica_is_the_last_choice() -> None:
    """Another is tried first; where there is none, the suspect again, after a pause."""
    door, one = Door(), record()
    door.ready("a", "b")
    ticket = await door.admission.admit(call(CHAT), one)
    other = await ticket.replica({"a"})
    with ticket.committed(other.replica_id):
        assert other.replica_id == "b"
    at_first = one.decision
    again = await ticket.replica({"a", "b"})
    with ticket.committed(again.replica_id):
        assert again.replica_id in {"a", "b"}
    assert (at_first, one.decision) == (Decision.ADMITTED, Decision.WAITED)


async def test_equal_suspects_take_turns_within_one_call() -> None:
    """Two replicas that were both busy are asked again one after the other, not the first alone."""
    door = Door()
    door.ready("a", "b")
    asked = set()
    ticket = await door.admission.admit(call(CHAT), record())
    for _ in range(2):
        chosen = await ticket.replica({"a", "b"})
        with ticket.committed(chosen.replica_id):
            asked.add(chosen.replica_id)
    assert asked == {"a", "b"}


async def test_a_lost_replica_gets_no_call_until_it_reports_again() -> None:
    """Not even the call that reported the loss."""
    door, one = Door(), record()
    door.ready("a", "b")
    ticket = await door.admission.admit(call(CHAT), one)
    door.clock.advance(1)
    ticket.report_lost("a")
    left = await ticket.replica({"a"})
    with ticket.committed(left.replica_id):
        assert left.replica_id == "b"
    assert one.replicas_lost == 1 and [it.replica_id for it in door.fleet.candidates("m")] == ["b"]
    door.ready("a", "b")
    assert len(door.fleet.candidates("m")) == 2


async def test_busy_replicas_are_asked_until_the_time_is_over() -> None:
    """Then the client learns when to retry, and the decision is that of a wait."""
    door, one = Door(replica_wait_s=10.0), record()
    door.ready("a")
    ticket = await door.admission.admit(call(CHAT), one)
    ticket.require_time()
    in_time = one.decision
    door.clock.advance(10)
    with pytest.raises(NoReplicaReady, match="is busy"):
        ticket.require_time()
    assert (in_time, one.decision) == (Decision.ADMITTED, Decision.REFUSED_WAIT)


async def test_a_call_that_has_to_wake_its_model_waits_for_a_whole_start() -> None:
    """`wake_wait_s` in place of `replica_wait_s`, which is over at once here."""
    door, one = Door(replica_wait_s=0.01), record()
    asleep = ListedModel("m", wanted=0, may_sleep=True)
    door.fleet.take(msgspec.structs.replace(answer(), models=(asleep,)), door.clock.now)
    waiting = asyncio.create_task(door.admit(one))
    await asyncio.sleep(0)
    assert not waiting.done() and door.demands.held_requests("m") == 1
    door.ready("a")
    assert await waiting == "a"


async def test_only_a_listed_models_calls_are_demand() -> None:
    """Other names are a client's, and without number; what arrives is estimated."""
    door = Door(replica_wait_s=0.01)
    before = door.demands.read()
    with pytest.raises(NoReplicaReady):
        await door.admit(record(), call(CHAT))
    assert door.demands.since(before, door.demands.read()) == {}
    door.fleet.take(answer(report("a", ReplicaState.LOADING)), door.clock.now)
    with pytest.raises(NoReplicaReady):
        await door.admit(record(), call(CHAT, max_tokens=5))
    seen = door.demands.since(before, door.demands.read())["m"]
    assert seen.arrived_prompt_tokens > 0 and seen.expected_output_tokens == 5


async def test_a_call_has_its_place_until_the_end_of_its_ticket() -> None:
    """The next one waits for it in its class, and its record says so; calls that compute nothing need no place."""
    door, first, second = Door(), record(), record()
    small = msgspec.structs.replace(report("a"), load=EngineLoad(kv_cache_tokens=10))
    door.clock.advance(1)
    door.fleet.take(answer(small), door.clock.now)
    with await door.admission.admit(call(CHAT), first) as ticket:
        ticket.begun()
        waiting = asyncio.create_task(door.admission.admit(call(CHAT), second))
        await asyncio.sleep(0)
        assert await door.admit(record(), call(COUNT_TOKENS)) == "a"
        assert {depth.calls for depth in door.admission.depths()} == {0, 1} and ticket.urgency == 0
        door.clock.advance(3)
    with await waiting:
        assert (second.decision, second.queued, second.queued_s) == (Decision.WAITED, Queued.IN_TURN, 3.0)
    assert (first.priority, first.queued, second.priority) == ("standard", None, "standard")


async def test_a_call_that_leaves_the_line_says_how() -> None:
    """Its client left, or it was refused."""
    door, left, refused = Door(waiting_requests_max=1), record(), record()
    small = msgspec.structs.replace(report("a"), load=EngineLoad(kv_cache_tokens=10))
    door.clock.advance(1)
    door.fleet.take(answer(small), door.clock.now)
    with await door.admission.admit(call(CHAT), record()):
        waiting = asyncio.create_task(door.admission.admit(call(CHAT), left))
        await asyncio.sleep(0)
        with pytest.raises(GatewayFull):
            await door.admission.admit(call(CHAT), refused)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert (left.queued, left.decision) == (Queued.LEFT, Decision.REFUSED_WAIT)
    assert (refused.queued, refused.decision) == (Queued.REFUSED, Decision.REFUSED_FULL)


async def test_equal_replicas_take_turns() -> None:
    """Calls one after the other are shared out, though none is on a replica when the next comes."""
    door = Door()
    door.ready("a", "b")
    assert {await door.admit(record()) for _ in range(2)} == {"a", "b"}


def test_the_gate_comes_before_everything_else() -> None:
    """A request past `max_open_requests` is refused before its body is read."""
    clock = Clock()
    demands = Demands(clock)
    fleet = Fleet([], demands, clock, clock)
    door = Admission(fleet, demands, Estimates(), GatewaySettings(max_open_requests=1), clock)
    one = record()
    with door.entered(record()), pytest.raises(GatewayFull), door.entered(one):
        pass
    assert one.decision is Decision.REFUSED_FULL and not one.asked_for_engine
