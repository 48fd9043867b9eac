"""Sight: what a handler's thread sees of what belongs to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from serving.config import GatewaySettings
from serving.errors import StoreUnavailable
from serving.gateway.admission.admission import Admission
from serving.gateway.admission.counters.memory import MemoryCounters
from serving.gateway.admission.estimates import Estimates
from serving.gateway.admission.reservations import Reservations
from serving.gateway.api.admin.sight import Sight
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.polls import Polls
from serving.gateway.observe.activity import SLOT_S, Did, Slot
from serving.wire import DirectoryAnswer, EngineLoad, Listed, ListedModel, ReplicaReport, ReplicaState
from tests.clock import Clock

T = TypeVar("T")

HOUR = [Slot(0, {"m": Did(requests=2)})]


class Seen:
    """A gateway's parts, as far as they are looked at."""

    def __init__(self) -> None:
        self.clock = Clock()
        settings, demands = GatewaySettings(), Demands(self.clock)
        self.fleet = Fleet((), demands, self.clock, self.clock)
        polls = Polls((), self.fleet, demands, 1.0, self.clock)
        admission = Admission(self.fleet, demands, Estimates(), settings, self.clock)
        counters = MemoryCounters(lambda: 0)
        reservations = Reservations(counters, lambda *_: None, Estimates(), self.clock)
        self.sight = Sight(
            self.fleet, polls, admission, reservations, self.hours, lambda: 3, {"alias": "m"}, self.clock, self.clock
        )

    async def hours(self) -> Sequence[list[Slot]]:
        return [HOUR, HOUR]

    async def asked(self, look: Callable[[], T]) -> T:
        """As a handler asks."""
        self.sight.open_in(asyncio.get_running_loop())
        return await asyncio.to_thread(look)


def blind() -> Sight:
    """One of a gateway that does not run."""
    return Seen().sight


def test_a_gateway_that_starts_is_not_seen() -> None:
    """Its handlers wait for nothing."""
    with pytest.raises(StoreUnavailable):
        blind().fleet()


async def test_the_fleet_is_seen_with_its_reasons() -> None:
    """Which replica does not start and why, what each has to do, and why there are too few."""
    seen = Seen()
    load = EngineLoad(running_requests=2, waiting_requests=1, kv_cache_used_ratio=0.5)
    ready = ReplicaReport(
        "a", "m", "http://a", ReplicaState.READY, load=load, node="n1", devices=("0",), adapters=("x",)
    )
    failed = ReplicaReport("b", "m", "http://b", ReplicaState.FAILED, reason="Its GPU is gone.")
    plan = ListedModel("m", 4096, wanted=3, reason="most", shortage="No node has room.")
    listed = (Listed(ready, 0.5), Listed(failed, 0.0))
    seen.fleet.take(DirectoryAnswer("cell", "1", True, listed, ("GPU 1 is suspect.",), (plan,)), seen.clock())
    found = await seen.asked(seen.sight.fleet)
    (model,) = found.models
    assert (model.name, model.state, model.wanted, model.shortage) == ("m", "ready", 3, "No node has room.")
    assert (model.aliases, model.adapters, model.reason) == (["alias"], ["x"], "most")
    first, second = model.replicas
    assert (first.id, first.running_requests, first.kv_cache_used_ratio, first.node) == ("a", 2, 0.5, "n1")
    assert first.reported_s_ago == pytest.approx(0.5)
    assert (second.state, second.reason) == (ReplicaState.FAILED, "Its GPU is gone.")
    assert found.warnings == ["GPU 1 is suspect."] and found.gateways == 3

    seen.fleet.report_lost("a")
    assert (await seen.asked(seen.sight.fleet)).models[0].replicas[0].state is ReplicaState.FAILED


async def test_the_hour_says_whose_it_is() -> None:
    """Of two processes out of three."""
    seen = Seen()
    found = await seen.asked(seen.sight.hour)
    assert (found.covers, found.gateways, found.ends_at) == (2, 3, (seen.clock() // SLOT_S + 1) * SLOT_S)
