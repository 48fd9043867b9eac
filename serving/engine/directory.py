"""Directory: who serves what in this cell? Replicas report here about twice a second; gateways ask over HTTP.

It keeps nothing: a restarted directory hears everyone again within one interval, and says until then that its answer
is not complete, so that its silence removes nobody.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from serving.engine.failures import Failure, Failures
from serving.secret import PlaneSecret
from serving.wire import DirectoryAnswer, Listed, ReplicaReport, ReplicaState

#: Seconds without a report after which a replica is no longer listed: twenty missed reports.
EXPIRY_S = 10.0
#: Seconds after its start from which a directory has heard from everyone who lives.
COMPLETE_AFTER_S = 5.0
#: Gangs whose meeting place is remembered; a cell has fewer nodes.
_MEETINGS_MAX = 1000

#: Address and port of an engine's first member.
Meeting = tuple[str, int]


class Listing:
    """The reports heard in this incarnation; plain data, the clock given."""

    def __init__(self, cell: str, incarnation: str, clock: Callable[[], float]) -> None:
        self._cell = cell
        self._incarnation = incarnation
        self._clock = clock
        self._started_at = clock()
        self._heard: dict[str, tuple[float, ReplicaReport]] = {}
        self._failures = Failures()
        self._meetings: dict[str, Meeting] = {}

    def hear(self, report: ReplicaReport) -> None:
        now = self._clock()
        before = self._heard.get(report.replica_id)
        if report.state is ReplicaState.FAILED and not (before and before[1].state is ReplicaState.FAILED):
            self._failures.hear(Failure(report.model, report.node, report.devices, now))
        self._heard[report.replica_id] = (now, report)

    def start_wait_s(self, model: str) -> float:
        """Seconds an engine of `model` should wait before it starts, because others failed."""
        return self._failures.wait_s(model, self._clock())

    def meet(self, gang: str, address: Meeting | None) -> Meeting | None:
        """Where the members of an engine over several nodes find its first one, which says so itself."""
        if address is not None:
            self._meetings[gang] = address
            while len(self._meetings) > _MEETINGS_MAX:
                del self._meetings[next(iter(self._meetings))]
        return self._meetings.get(gang)

    def answer(self) -> DirectoryAnswer:
        now = self._clock()
        self._heard = {key: (at, report) for key, (at, report) in self._heard.items() if now - at < EXPIRY_S}
        return DirectoryAnswer(
            cell=self._cell,
            incarnation=self._incarnation,
            is_complete=now - self._started_at >= COMPLETE_AFTER_S,
            replicas=tuple(Listed(report=report, heard_ago_s=now - at) for at, report in self._heard.values()),
            warnings=tuple(self._failures.suspects(now)),
        )


class Directory:
    """The Serve deployment around a Listing."""

    def __init__(self, cell: str, secret_file: str) -> None:
        self._listing = Listing(cell, uuid.uuid4().hex, time.monotonic)
        self._secret = PlaneSecret(Path(secret_file))

    async def report(self, report: ReplicaReport) -> None:
        """Called by replicas through Serve."""
        self._listing.hear(report)

    async def start_wait_s(self, model: str) -> float:
        """Called by a replica before it starts its engine."""
        return self._listing.start_wait_s(model)

    async def meet(self, gang: str, address: Meeting | None) -> Meeting | None:
        """Called by the members of a gang until they know where to meet."""
        return self._listing.meet(gang, address)

    async def __call__(self, request: Request) -> Response:
        """Called by gateways over HTTP; demands the plane secret and never returns it."""
        if not self._secret.accepts(request.headers.get("authorization", "").encode()):
            return Response(status_code=401)
        return Response(msgspec.json.encode(self._listing.answer()), media_type="application/json")
