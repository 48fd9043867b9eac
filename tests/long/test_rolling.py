"""Rolling replacements under load: settings that restart engines come again and again, each time replacing both engines of a model
one after the other, while clients ask for whole answers, short streams and long ones. No call fails, and no engine waits for the
long streams: they are handed on.

`ENGINE_REPLACEMENTS` says how many engines are replaced so (4 by default), `ENGINE_DRAINS` how many drain that start again as forks (6).
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import pytest

from serving.wire import ReplicaState
from tests.exposition import value
from tests.long.callers import ASKED, Load
from tests.long.pair import Cell, Pair
from tests.stack.conftest import SMOLLM2
from tests.stack.http import call
from tests.stack.running import Stack, running
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

REPLACEMENTS = int(os.environ.get("ENGINE_REPLACEMENTS", "4"))
DRAINS = int(os.environ.get("ENGINE_DRAINS", "6"))
#: Seconds for two engines that start one after the other on two busy cores.
START_TIMEOUT_S = 900.0
SETTINGS = {
    "SERVING_MODELS": json.dumps([{"name": SMOLLM2, "min_replicas": 2, "max_replicas": 2}]),
    "SERVING_GATEWAY__HAND_ON_DRAINS": "true",
}


def settings(number: int) -> dict[str, str]:
    """Settings whose engines are not those of the number before."""
    return SETTINGS | {"SERVING_ENGINE__MEMORY_SHARE": f"{0.15 + number % 2 / 100}"}


class Drains:
    """How long each replica took to leave, by its directory."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._since: dict[str, float] = {}
        self.took_s: dict[str, float] = {}

    def is_replaced(self, before: set[str]) -> bool:
        """Two replicas are ready that were not there before, and no other is left."""
        states = {it.report.replica_id: it.report.state for it in self._stack.listed()}
        for replica_id, state in states.items():
            if state is ReplicaState.DRAINING:
                self._since.setdefault(replica_id, time.monotonic())
        for replica_id, since in self._since.items():
            if replica_id not in states:
                self.took_s.setdefault(replica_id, time.monotonic() - since)
        ready = {replica_id for replica_id, state in states.items() if state is ReplicaState.READY}
        return len(ready) == 2 and not before & states.keys()


def test_engines_are_replaced_under_load_and_no_call_fails(tmp_path: Path) -> None:
    """Whole answers and streams of any length; long streams went on at the other engine."""
    with running(tmp_path, SMOLLM2, settings(0)) as stack:
        until(lambda: len(stack.ready()) == 2, START_TIMEOUT_S, 0.5)
        load, drains = Load(stack.url, stack.key, SMOLLM2), Drains(stack)
        with load.running():
            for number in itertools.count(1):
                before = stack.ready()
                stack.resettle(settings(number))
                until(lambda before=before: drains.is_replaced(before), START_TIMEOUT_S, 0.2)  # type: ignore[misc]
                took = sorted(round(it, 1) for it in drains.took_s.values())
                print(
                    f"{2 * number} replaced, {dict(load.ended)}, otherwise {dict(load.otherwise)}, {load.failures}, left in {took} s",
                    flush=True,
                )
                if 2 * number >= REPLACEMENTS:
                    break
        page = call(stack.url, "GET", "/metrics")[2]
        assert not load.failures and all(load.ended[kind] for kind in ASKED)
        assert value(page, "serving_gateway_continuations_total", model=SMOLLM2) > 0


def test_engines_drain_and_come_back_under_load_and_no_call_fails(tmp_path: Path) -> None:
    """The same with engines that start within seconds, and so many more of them: one drains until it has nothing to do, is ended, and
    is READY again under another name, then the other.
    """
    pair = Pair(tmp_path, SMOLLM2)
    cell, took_s = Cell(pair), []
    with cell.running(), pair.running({"SERVING_GATEWAY__HAND_ON_DRAINS": "true"}, cell.url):
        secret = (tmp_path / "plane.secret").read_text().strip()
        load = Load(pair.url, pair.key, SMOLLM2)
        with load.running():
            for drain in range(DRAINS):
                number = drain % 2
                engine = pair.engines[number]
                until(lambda engine=engine: engine.running_requests(secret), 60.0)  # type: ignore[misc]
                cell.put(number, ReplicaState.DRAINING)
                since = time.monotonic()
                # The first look may come before gateways know.
                until(lambda: pair.metric("serving_gateway_replicas", 'state="ready"') == 1, 60.0)
                until(lambda engine=engine: not engine.running_requests(secret), 600.0)  # type: ignore[misc]
                took_s.append(round(time.monotonic() - since, 1))
                engine.kill()
                cell.put(number, ReplicaState.STARTING)
                engine.start(pair.nursery)
                engine.until_ready()
                cell.put(number, ReplicaState.READY)
                pair.until_both_ready()
                print(
                    f"{drain + 1} drained in {took_s} s, {dict(load.ended)}, "
                    f"otherwise {dict(load.otherwise)}, {load.failures}",
                    flush=True,
                )
        # Counted as calls end.
        went_on = pair.metric("serving_gateway_continuations_total")
    assert not load.failures and all(load.ended[kind] for kind in ASKED) and went_on
