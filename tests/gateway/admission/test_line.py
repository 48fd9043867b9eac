"""Line: calls wait for room in their order, are woken when there is some, and leave nothing behind however they go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config import GatewaySettings, QueueSettings, Timeouts
from serving.errors import GatewayFull, NoReplicaReady
from serving.gateway.admission.line import Claim, Line, Place, claim_of
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.router import Need
from serving.gateway.nouns import Caller
from serving.gateway.policies import CLASSES, Policy, PriorityClass
from serving.gateway.relay.events import KEEP_ALIVE
from serving.wire import EngineLoad
from tests.clock import Clock
from tests.gateway.calls import LEAST
from tests.gateway.fleet.directory import Directory
from tests.gateway.fleet.reports import answer, report
from tests.gateway.world import CHAT, World, running_gateway, until
from tests.scripted_engine import DONE, MODEL, Script, ScriptedEngine, chat_stream

INTERACTIVE, STANDARD, BATCH = CLASSES


async def nothing() -> None:
    return None


class Hall:
    """A line before one replica whose KV cache has room for `calls` of 100 tokens."""

    def __init__(self, calls: int = 1, *, waiting_requests_max: int = 100, keep_alive_s: float = 60.0) -> None:
        self.clock = Clock()
        self.demands = Demands(self.clock)
        self.fleet = Fleet([], self.demands, self.clock, self.clock)
        self.calls = calls
        settings = GatewaySettings(
            max_waiting_requests=waiting_requests_max,
            queue=QueueSettings(interactive_wait_s=30, standard_wait_s=120),
            timeouts=Timeouts(keep_alive_s=keep_alive_s),
        )
        self.line = Line(self.fleet, self.demands, settings, self.clock)
        self.report()

    def report(self) -> None:
        """The replica says how large its cache is; a sixteenth is for tenants that are owed."""
        load = EngineLoad(kv_cache_tokens=108 * self.calls)
        self.clock.advance(0.5)
        self.fleet.take(answer(msgspec.structs.replace(report("a"), load=load)), self.clock.now)

    async def place(self, claim: Claim, keep_alive: Callable[[], Awaitable[None]] = nothing) -> Place:
        place = self.line.place_at_once(claim) or await self.line.place(claim, keep_alive)
        place.begun()
        return place

    def waits(self, claim: Claim) -> asyncio.Task[Place]:
        return asyncio.create_task(self.place(claim))


def claim(
    tenant: str = "a", priority: PriorityClass = STANDARD, *, model: str = "m", prompt_tokens: int = 100
) -> Claim:
    return Claim(model, priority, tenant, 1.0, Need(prompt_tokens), is_streamed=True)


def leave(place: Place) -> None:
    place.leave(100, 0)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_a_call_is_for_decides_where_it_stands() -> None:
    """The class is the key's within its tenant's, the weight the tenant's."""
    caller = Caller(
        "t", "acme", "k", tenant_policy=Policy(priority=STANDARD, weight=3), key_policy=Policy(priority=BATCH)
    )
    one = claim_of(caller, "m", Need(10, 5), is_streamed=False)
    assert (one.priority, one.tenant, one.weight, one.tokens) == (BATCH, "t", 3, 30)
    assert claim_of(None, "m", Need(), is_streamed=True).priority is STANDARD


async def test_with_room_a_call_passes_at_once() -> None:
    """And without, the next one goes as soon as one ends."""
    hall = Hall(1)
    first = await hall.place(claim())
    second = hall.waits(claim())
    await settled()
    assert not second.done() and hall.demands.held_requests("m") == 1
    assert {depth.priority: depth.calls for depth in hall.line.depths()} == {INTERACTIVE: 0, STANDARD: 1, BATCH: 0}
    leave(first)
    leave(await second)
    assert hall.demands.held_requests("m") == 0


async def test_a_call_that_passes_at_once_goes_first_in_its_engine_where_its_tenant_is_owed() -> None:
    """Other gateways' calls may wait there though none does here."""
    hall = Hall(100)
    floods = [await hall.place(claim("a")) for _ in range(20)]
    assert (await hall.place(claim("b"))).urgency < 0 == floods[-1].urgency


async def test_the_line_is_kept() -> None:
    """A call does not pass those that wait, though there is room for it; classes and tenants do as the queue says."""
    hall = Hall(1)
    first = await hall.place(claim())
    order: list[str] = []

    async def call(tenant: str, priority: PriorityClass) -> None:
        place = await hall.place(claim(tenant, priority))
        order.append(f"{tenant} {priority}")
        leave(place)

    asked = [("a", BATCH), ("a", STANDARD), ("a", STANDARD), ("b", STANDARD), ("a", INTERACTIVE)]
    calls = [asyncio.create_task(call(*one)) for one in asked]
    await settled()
    leave(first)
    await asyncio.gather(*calls)
    assert order == ["a interactive", "b standard", "a standard", "a standard", "a batch"]


async def test_a_report_wakes_those_that_have_room_now() -> None:
    """A replica that is larger than before, or another one."""
    hall = Hall(1)
    await hall.place(claim())
    second, third = hall.waits(claim()), hall.waits(claim())
    await settled()
    hall.calls = 2
    hall.report()
    await settled()
    assert second.done() and not third.done()
    third.cancel()


async def test_engines_are_told_the_order() -> None:
    """By a number that is 0 for the standard class and lower for those that go before."""
    hall = Hall(3)
    places = [await hall.place(claim(priority=priority)) for priority in CLASSES]
    assert [place.urgency for place in places] == [-2, 0, 2]


async def test_a_client_that_waits_hears_of_it() -> None:
    """`keep_alive` is called every so often, and does not end the wait."""
    hall, said = Hall(1, keep_alive_s=0.01), []

    async def say() -> None:
        said.append(hall.clock.now)

    first = await hall.place(claim())
    second = asyncio.create_task(hall.place(claim(), say))
    while len(said) < 3:
        await asyncio.sleep(0.001)
        hall.clock.advance(0.01)
    leave(first)
    leave(await second)


@pytest.mark.parametrize(("priority", "wait_s"), [(INTERACTIVE, 30.0), (STANDARD, 120.0)])
async def test_past_its_classes_time_a_call_is_refused(priority: PriorityClass, wait_s: float) -> None:
    """It is told when to come back, by the rate of service; its place is nobody's."""
    hall = Hall(1, keep_alive_s=0.01)
    first = await hall.place(claim())
    second = hall.waits(claim(priority=priority))
    await settled()
    hall.clock.advance(wait_s)
    with pytest.raises(NoReplicaReady) as refused:
        await second
    assert refused.value.retry_after_s is not None and refused.value.retry_after_s > 1
    leave(first)
    leave(await hall.place(claim()))


async def test_a_full_line_refuses_the_tenant_that_has_most_in_it() -> None:
    """Its last call gives way to another's; its own next one is refused."""
    hall = Hall(1, waiting_requests_max=3)
    first = await hall.place(claim("a"))
    calls = [hall.waits(claim("a")) for _ in range(3)]
    await settled()
    with pytest.raises(GatewayFull) as full:
        await hall.place(claim("a"))
    other = hall.waits(claim("b"))
    with pytest.raises(GatewayFull):
        await calls[2]
    assert full.value.retry_after_s and not any(call.done() for call in (*calls[:2], other))
    leave(first)
    leave(await other)
    for call in calls[:2]:
        leave(await call)


async def test_a_place_given_to_a_client_that_left_is_the_next_ones() -> None:
    """Between its wake-up and its turn of the event loop a task may be cancelled."""
    hall = Hall(1)
    first = await hall.place(claim())
    second, third = hall.waits(claim()), hall.waits(claim())
    await settled()
    leave(first)
    second.cancel()
    leave(await third)
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_a_large_call_that_gives_up_lets_the_next_ones_go() -> None:
    """Nothing else may happen for a while that would wake them."""
    hall = Hall(2)
    await hall.place(claim(prompt_tokens=50))
    large, small = hall.waits(claim(prompt_tokens=200)), hall.waits(claim(prompt_tokens=50))
    await settled()
    assert not large.done() and not small.done()
    large.cancel()
    await settled()
    assert small.done()


async def test_models_wait_for_themselves() -> None:
    """A full model holds up no other."""
    hall = Hall(1)
    hall.fleet.take(answer(report("b", model="other"), cell="other"), hall.clock.now)
    await hall.place(claim())
    waits = hall.waits(claim())
    await hall.place(claim(model="other"))
    assert not waits.done()
    waits.cancel()


@given(st.integers(1, 4), st.integers(5, 40), st.integers(0, 2**32))
def test_no_wake_up_is_lost_and_no_place(calls: int, asked: int, seed: int) -> None:
    """Clients come, leave at any moment and end: all that stay get a place, never more at a time than fit, and at the end all is free."""
    chance = random.Random(seed)
    hall_calls = calls

    async def play() -> None:
        hall = Hall(hall_calls)
        inside = 0

        async def call() -> None:
            nonlocal inside
            place = await hall.place(claim(chance.choice("abc"), chance.choice(CLASSES)))
            inside += 1
            try:
                assert inside <= hall_calls
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                inside -= 1
                leave(place)

        tasks = []
        for _ in range(asked):
            tasks.append(asyncio.create_task(call()))
            if chance.random() < 0.4:
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                chance.choice(tasks).cancel()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(one is None or isinstance(one, asyncio.CancelledError) for one in done)
        assert hall.demands.held_requests("m") == 0 and not any(depth.calls for depth in hall.line.depths())
        places = [await hall.place(claim()) for _ in range(hall_calls)]
        assert hall.line.place_at_once(claim()) is None
        for place in places:
            leave(place)

    asyncio.run(play())


@asynccontextmanager
async def full(tmp_path: Path, engine: ScriptedEngine, **queue: float) -> AsyncIterator[World]:
    """A gateway before a replica that has room for one call at a time."""
    load = EngineLoad(kv_cache_tokens=10)
    one = msgspec.structs.replace(report("a", model=MODEL, url=engine.url), load=load)
    async with Directory() as directory:
        directory.says = answer(one)
        settings = QueueSettings(**queue)
        async with running_gateway(tmp_path, directories=(directory.url,), queue=settings) as world:
            yield world


async def test_a_stream_that_waits_gets_comments_and_then_its_answer(tmp_path: Path) -> None:
    """Proxies cut idle streams. Its row has its class and how long it waited."""
    gate = asyncio.Event()
    async with ScriptedEngine() as engine, full(tmp_path, engine) as world:
        engine.say(Script(chat_stream(["One"]), gate=gate))
        first = asyncio.create_task(world.chat(stream=True))
        await until(lambda: engine.received)
        async with world.client.post(
            f"{world.url}/v1/chat/completions", json=CHAT | {"stream": True}, headers=world.headers()
        ) as second:
            comment = await second.content.readexactly(len(KEEP_ALIVE))
            assert (second.status, comment, len(engine.received)) == (200, KEEP_ALIVE, 1)
            gate.set()
            assert (await second.content.read()).endswith(DONE)
        await first
        await until(lambda: all(row["outcome"] == "ok" for row in world.rows()))
        shown = (await world.ask("GET", "/metrics")).body.decode()
    waited = [float(str(line["waited_s"])) for line in world.lines if line["model"] == MODEL]
    assert {row["priority"] for row in world.rows()} == {"standard"} and max(waited) > 0
    assert (
        'serving_gateway_queue_outcomes_total{model="scripted-model",outcome="in_turn",priority="standard"} 1.0'
        in shown
    )
    assert 'serving_gateway_queued_calls{model="scripted-model",priority="batch"} 0.0' in shown


async def test_a_whole_answer_that_waits_too_long_is_refused(tmp_path: Path) -> None:
    """503 with the seconds after which it is worth to come back; a stream that has had comments ends in an error event."""
    async with ScriptedEngine() as engine, full(tmp_path, engine, standard_wait_s=0.5) as world:
        engine.say(Script(is_mute=True))
        first = asyncio.create_task(world.chat())
        await until(lambda: engine.received)
        refused, ended = await asyncio.gather(world.chat(), world.chat(stream=True))
        first.cancel()
    assert (refused.status, refused.error["code"]) == (503, "no_replica_ready") and int(
        refused.headers["retry-after"]
    ) >= 1
    assert ended.status == 200 and b"no_replica_ready" in ended.body and len(engine.received) == 1


async def test_the_class_goes_to_the_engine_and_only_from_here(world: World, engine: ScriptedEngine) -> None:
    """By vLLM's own header, on every API that generates; a client's is not passed on."""
    world.registry.create_tenant("night", policy=Policy(priority=BATCH))
    night = {"Authorization": f"Bearer {world.registry.create_key('night')}", "Content-Type": "application/json"}
    for headers in (night, world.headers() | {"Content-Type": "application/json", "X-Vllm-Priority": "-9"}):
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
            await world.ask("POST", path, LEAST[path] | {"model": MODEL}, headers)
    sent = [
        {name.lower(): value for name, value in it.headers.items()}.get("x-vllm-priority") for it in engine.received
    ]
    assert sent == ["2"] * 4 + [None] * 4
