"""Sink: answers are relayed, metered and billed into anything that takes one; HTTP's responder is one of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable

from serving.config import GatewaySettings
from serving.gateway.admission.admission import Admission
from serving.gateway.admission.estimates import Estimates
from serving.gateway.dialects.chat import CHAT
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.http.asgi import Header, Responder
from serving.gateway.http.upstream import Upstream
from serving.gateway.nouns import CallRecord, Usage
from serving.gateway.observe.tracing import Trace
from serving.gateway.relay.exchange import Exchange
from serving.gateway.relay.relay import Relay
from serving.gateway.relay.sink import Sink
from tests.clock import Clock
from tests.gateway.asgi import Wire
from tests.gateway.calls import call
from tests.gateway.fleet.reports import answer, report
from tests.scripted_engine import DONE, ScriptedEngine


class Page:
    """Keeps an answer, as a batch's results would be kept."""

    def __init__(self) -> None:
        self.is_whole = False
        self.status: int | None = None
        self.text = b""
        self.is_finished = False
        self.waited_s = 0.0

    @property
    def is_started(self) -> bool:
        return self.status is not None

    @property
    def takes_now(self) -> bool:
        return False

    def write_now(self, body: bytes) -> None: ...

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        self.status = status

    async def write(self, body: bytes) -> None:
        self.text += body

    async def finish(self, body: bytes = b"") -> None:
        self.text, self.is_finished = self.text + body, True

    def cut(self) -> None: ...


def test_a_responder_is_a_sink() -> None:
    """mypy holds the methods; here stands what it starts as."""
    one: Sink = Responder(Wire().send, "r")
    assert (one.is_whole, one.is_started, one.waited_s) == (False, False, 0.0)


async def test_an_answer_goes_into_any_sink_and_is_billed() -> None:
    """Without a request, a connection or a client: the record has the engine's usage all the same."""
    clock, page, record = Clock(), Page(), CallRecord(request_id="r", started_at=0.0)
    demands, estimates, upstream = Demands(clock), Estimates(), Upstream(5.0)
    fleet = Fleet([], demands, clock, clock)
    admission = Admission(fleet, demands, estimates, GatewaySettings(), clock)
    relay = Relay(upstream, estimates, GatewaySettings(), None, clock)
    one = call(CHAT, stream=True)
    async with ScriptedEngine() as engine, upstream.opened():
        fleet.take(answer(report("a", url=engine.url)), clock.now)
        ticket = await admission.admit(one, record)
        await relay.relay(Exchange(one, page, record, Trace(), clock, lambda _: None), ticket)
    assert (page.status, page.is_whole, page.is_finished) == (200, True, True) and page.text.endswith(DONE)
    assert record.usage == Usage(7, 2, 3, 1) and record.bytes_relayed == len(page.text) and record.replica_id == "a"


async def test_a_call_that_is_over_is_forgotten_at_once() -> None:
    """Its body too, without the garbage collector, which would have to look through everything that is open to find it."""
    clock, record = Clock(), CallRecord(request_id="r", started_at=0.0)
    demands, estimates, upstream = Demands(clock), Estimates(), Upstream(5.0)
    fleet = Fleet([], demands, clock, clock)
    admission = Admission(fleet, demands, estimates, GatewaySettings(), clock)
    relay = Relay(upstream, estimates, GatewaySettings(), None, clock)
    left: list[object] = []
    gc.disable()
    try:
        async with ScriptedEngine() as engine, upstream.opened():
            fleet.take(answer(report("a", url=engine.url)), clock.now)
            for is_streamed in (True, False):
                exchange = Exchange(call(CHAT, stream=is_streamed), Page(), record, Trace(), clock, lambda _: None)
                gone = weakref.ref(exchange)
                ticket = await admission.admit(exchange.call, record)
                await relay.relay(exchange, ticket)
                del exchange, ticket
                left.append(gone())
    finally:
        gc.enable()
    assert left == [None, None]
