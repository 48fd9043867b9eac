"""Waiting room: first come first served, bounded in number and in time."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from serving.errors import GatewayFull, ModelNotFound, NoReplicaReady
from serving.gateway.admission.waiting_room import WaitingRoom
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.wire import ListedModel, ReplicaState
from tests.clock import Clock
from tests.gateway.fleet.reports import answer, report


class Room:
    """A waiting room and the fleet whose answers wake it."""

    def __init__(self, clock: Clock, demands: Demands | None = None, waiting_requests_max: int = 10) -> None:
        demands = demands or Demands(clock)
        self.fleet = Fleet([], demands, clock, clock)
        self.room = WaitingRoom(self.fleet, demands, waiting_requests_max, clock)


async def test_waiting_ends_when_a_replica_is_ready_in_order_of_arrival() -> None:
    """The call that waited first is woken first, and only for its own model."""
    clock, woken = Clock(), []
    one = Room(clock)

    async def wait(name: str, model: str) -> None:
        await one.room.until_ready(model, clock.now + 5)
        woken.append(name)

    tasks = [asyncio.create_task(wait(name, model)) for name, model in (("1", "m"), ("2", "other"), ("3", "m"))]
    await asyncio.sleep(0)
    one.fleet.take(answer(report("1"), report("2", ReplicaState.LOADING, model="other")), clock.now)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(tasks[0], tasks[2])
    assert woken == ["1", "3"] and not tasks[1].done()
    tasks[1].cancel()


async def test_waiting_ends_at_its_deadline() -> None:
    """No call waits for ever: past the deadline the client learns when to retry."""
    clock = Clock()
    with pytest.raises(NoReplicaReady) as told:
        await Room(clock).room.until_ready("m", clock.now)
    assert told.value.retry_after_s


async def test_a_call_for_an_adapter_is_woken_by_a_replica_that_offers_it() -> None:
    """A ready replica of its model without the adapter wakes no such call."""
    clock = Clock()
    one = Room(clock)
    waiting = asyncio.create_task(one.room.until_ready("x", clock.now + 5))
    await asyncio.sleep(0)
    loading = report("2", ReplicaState.LOADING, adapters=("x",))
    one.fleet.take(answer(report("1"), loading), clock.now)
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.advance(1)
    one.fleet.take(answer(report("1", adapters=("x",))), clock.now)
    await waiting
    assert [it.replica_id for it in one.fleet.candidates("x")] == ["1"]


async def test_a_call_whose_model_is_withdrawn_waits_no_longer() -> None:
    """It is told that there is no such model as soon as the fleet says so: a later call would be told the same."""
    clock = Clock()
    one = Room(clock)
    one.fleet.take(answer(report("1"), report("2", ReplicaState.LOADING, adapters=("x",))), clock.now)
    waiting = asyncio.create_task(one.room.until_ready("x", clock.now + 5))
    await asyncio.sleep(0)
    clock.advance(1)
    one.fleet.take(answer(report("1")), clock.now)
    with pytest.raises(ModelNotFound):
        await asyncio.wait_for(waiting, 10)


async def test_the_waiting_room_has_a_last_place() -> None:
    """A call that comes after a model's last place is taken is refused with a time to retry; no other call is affected."""
    clock = Clock()
    demands = Demands(clock)
    one = Room(clock, demands, waiting_requests_max=1)
    waits = asyncio.create_task(one.room.until_ready("m", clock.now + 5, prompt_tokens=7))
    await asyncio.sleep(0)
    with pytest.raises(GatewayFull) as refused:
        await one.room.until_ready("m", clock.now + 5)
    assert refused.value.retry_after_s and not waits.done() and demands.held_requests("m") == 1
    one.fleet.take(answer(msgspec.structs.replace(report("a"), state=ReplicaState.LOADING)), clock.now)
    clock.advance(2)
    (seen,) = one.fleet.models()
    assert (seen.waiting_requests, seen.oldest_wait_s) == (1, 2.0)
    clock.advance(1)
    one.fleet.take(answer(report("a")), clock.now)
    await waits
    assert demands.held_requests("m") == 0


async def test_a_call_for_an_adapter_that_its_ready_base_lacks_is_no_demand() -> None:
    """More engines would lack it too."""
    clock = Clock()
    demands = Demands(clock)
    one = Room(clock, demands)
    asleep = ListedModel("m", adapters=("x",), wanted=1)
    one.fleet.take(msgspec.structs.replace(answer(report("1")), models=(asleep,)), clock.now)
    waits = asyncio.create_task(one.room.until_ready("x", clock.now + 5))
    await asyncio.sleep(0)
    assert not waits.done() and demands.held_requests("m") == 0
    waits.cancel()
