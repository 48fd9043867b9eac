"""Failover: what happens to streams when an engine's pod is drained or killed. The only disruptive part of an acceptance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from serving.operate import measure
from serving.operate.cluster import Cluster
from serving.operate.findings import Disruption, watched
from serving.operate.measure import Bounds, MeasuredCall, Target
from serving.operate.objects import Pod, Unknown
from serving.operate.status import COMPONENT, INSTANCE

#: Kind of disruption → the grace its pod gets: as the chart says, or none, as when a node dies.
KINDS: Mapping[str, int | None] = {"drain": None, "kill": 0}
#: Clients that call meanwhile: enough that some stream is open when the pod goes, few enough not to be a load.
CLIENTS = 8


async def disrupt(
    target: Target, model: str, cluster: Cluster, release: str, kind: str, bounds: Bounds
) -> Disruption | Unknown:
    """Delete one engine's pod while streams run, and watch them until the fleet is complete again or time is up."""
    engines = await asyncio.to_thread(_engines, cluster, release)
    if isinstance(engines, Unknown):
        return engines
    ready = [it for it in engines if it.is_ready]
    if not ready:
        return Unknown("no engine's pod is ready", f"kubectl -n {cluster.namespace} get pods -l {COMPONENT}=engine")
    crowd = _Crowd(target, model, bounds)
    async with crowd.calling():
        await crowd.warm()
        gone_at = target.clock()
        refused = await asyncio.to_thread(cluster.delete, "pods", ready[0].name, KINDS[kind])
        whole_at = None if refused else await _until_whole(cluster, release, ready, target.clock, bounds.recovery_s)
    if refused:
        return refused
    return watched(kind, len(ready), crowd.outcomes, gone_at, whole_at)


def _engines(cluster: Cluster, release: str) -> list[Pod] | Unknown:
    found = cluster.pods(f"{INSTANCE}={release},{COMPONENT}=engine")
    if isinstance(found, Unknown):
        return found
    return [it for it in found if not it.is_over and it.metadata.deletion_timestamp is None]


class _Crowd:
    """Clients that call in a loop until the end of a `with`; the calls in flight then run to their end."""

    def __init__(self, target: Target, model: str, bounds: Bounds) -> None:
        self._target = target
        self._model = model
        self._bounds = bounds
        self._is_over = False
        self._warm = asyncio.Event()
        self.outcomes: list[MeasuredCall] = []

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._keep_calling(number))
            try:
                yield
            finally:
                self._is_over = True

    async def warm(self) -> None:
        """Wait for as many answers as clients, so that no cold start follows; at most one step long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._bounds.seconds_per_step):
                await self._warm.wait()

    async def _keep_calling(self, number: int) -> None:
        while not self._is_over:
            text = f"{number} {len(self.outcomes)} Tell a long story about a river."
            outcome = await measure.stream(self._target, self._model, text, self._bounds.output_tokens)
            self.outcomes.append(outcome)
            if len(self.outcomes) >= CLIENTS:
                self._warm.set()
            if outcome.error:
                # A refusal comes at once: without a pause, clients would flood a broken fleet.
                await asyncio.sleep(measure.PAUSE_S)


async def _until_whole(
    cluster: Cluster, release: str, before: Sequence[Pod], clock: Callable[[], float], within_s: float
) -> float | None:
    """When as many engines are ready as before, one of them new; None when that does not happen in time."""
    names, deadline = {it.name for it in before}, clock() + within_s
    while clock() < deadline:
        found = await asyncio.to_thread(_engines, cluster, release)
        ready = [] if isinstance(found, Unknown) else [it.name for it in found if it.is_ready]
        if len(ready) >= len(before) and set(ready) - names:
            return clock()
        await asyncio.sleep(min(1.0, within_s / 20))
    return None
