"""Fleet: every replica of every cell, as last heard. Silence removes nobody; only an answer, or a refused connection does.

Directories and engines without one are polled; what they say is merged by pure functions over plain data.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import aiohttp
import msgspec

from serving.errors import NoReplicaReady
from serving.gateway.router import Candidate
from serving.secret import PlaneSecret
from serving.wire import DIRECTORY_ROUTE, LIVENESS_ROUTE, DirectoryAnswer, Listed, ReplicaReport, ReplicaState

#: Seconds after which a model nobody lists any more is unknown (404) instead of not ready (503): a cold restart is shorter.
MODEL_MEMORY_S = 3600.0
#: Seconds a poll may take; a directory answers in milliseconds.
POLL_TIMEOUT_S = 5.0
#: Reports closer together than this are the same one, seen through the network's jitter.
SAME_REPORT_S = 0.05
#: What a source's answer can fail with once it has been reached; msgspec leaves broken UTF-8 to Python's own error.
_NO_ANSWER = (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError)

log = logging.getLogger(__name__)


class Known(msgspec.Struct, frozen=True):
    """A replica as last heard, and from which cell."""

    report: ReplicaReport
    cell: str
    #: When it spoke, on this gateway's clock.
    heard_at: float
    #: This gateway's requests on it then.
    own_when_heard: int = 0


def merge(
    known: Mapping[str, Known], answer: DirectoryAnswer, asked_at: float, own_requests: Mapping[str, int]
) -> dict[str, Known]:
    """The fleet after one directory's answer; `asked_at` is when it was asked, so that latency makes nobody younger.

    A replica that is missing leaves only when the answer is complete and from the cell that had listed it.
    """
    listed = {entry.report.replica_id for entry in answer.replicas}
    merged = {
        replica_id: replica
        for replica_id, replica in known.items()
        if not (answer.is_complete and replica.cell == answer.cell and replica_id not in listed)
    }
    for entry in answer.replicas:
        replica_id = entry.report.replica_id
        heard_at = asked_at - entry.heard_ago_s
        before = merged.get(replica_id)
        jitter_s = SAME_REPORT_S if before and before.report == entry.report else 0.0
        if before is None or heard_at > before.heard_at + jitter_s:
            merged[replica_id] = Known(entry.report, answer.cell, heard_at, own_requests.get(replica_id, 0))
    return merged


def ready(known: Mapping[str, Known], lost_at: Mapping[str, float], model: str) -> list[Known]:
    """Replicas that may get a call: said READY, and after the last refused connection. One per address."""
    by_url: dict[str, Known] = {}
    for replica_id, replica in known.items():
        report = replica.report
        if report.model != model or report.state is not ReplicaState.READY or report.rank:
            continue
        if replica.heard_at <= lost_at.get(replica_id, float("-inf")):
            continue
        twin = by_url.get(report.url)
        if twin is None or replica.heard_at > twin.heard_at:
            by_url[report.url] = replica
    return list(by_url.values())


class Silence(Exception):
    """A source did not answer: nothing follows from it."""


class Source(Protocol):
    """Where replicas are heard of."""

    name: str

    async def ask(self, session: aiohttp.ClientSession) -> DirectoryAnswer:
        """What it lists now; raises Silence."""
        ...


class DirectorySource:
    """One cell's directory."""

    def __init__(self, base_url: str, secret: PlaneSecret | None) -> None:
        self.name = base_url
        self._url = base_url.rstrip("/") + DIRECTORY_ROUTE
        self._secret = secret

    async def ask(self, session: aiohttp.ClientSession) -> DirectoryAnswer:
        try:
            async with session.get(self._url, headers=bearer(self._secret)) as response:
                if response.status != 200:
                    raise Silence(f"status {response.status}")
                return msgspec.json.decode(await response.read(), type=DirectoryAnswer)
        except _NO_ANSWER as error:
            raise Silence(type(error).__name__) from None


class _ModelCard(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


class EngineSource:
    """An engine without a directory: its own `/health` and `/v1/models` stand in for one.

    Nobody generates a token to prove it ready, as a replica's supervisor does.
    """

    def __init__(self, url: str, secret: PlaneSecret | None) -> None:
        self.name = url
        self._url = url.rstrip("/")
        self._secret = secret
        self._models: Sequence[_ModelCard] = ()

    async def ask(self, session: aiohttp.ClientSession) -> DirectoryAnswer:
        try:
            state = ReplicaState.READY if await self._is_healthy(session) else ReplicaState.FAILED
            if state is ReplicaState.READY:
                self._models = await self._list_models(session)
        except aiohttp.ClientConnectorError as error:
            if not self._models:
                # It has never answered: which models it would serve is not known.
                raise Silence(type(error).__name__) from None
            state = ReplicaState.FAILED
        except _NO_ANSWER as error:
            raise Silence(type(error).__name__) from None
        return self._answer(state)

    async def _is_healthy(self, session: aiohttp.ClientSession) -> bool:
        async with session.get(self._url + LIVENESS_ROUTE[1]) as response:
            return response.status == 200

    async def _list_models(self, session: aiohttp.ClientSession) -> Sequence[_ModelCard]:
        async with session.get(f"{self._url}/v1/models", headers=bearer(self._secret)) as response:
            if response.status != 200:
                raise Silence(f"status {response.status}")
            return msgspec.json.decode(await response.read(), type=_ModelList).data

    def _answer(self, state: ReplicaState) -> DirectoryAnswer:
        listed = [
            Listed(
                ReplicaReport(
                    replica_id=f"{self._url}#{card.id}",
                    model=card.id,
                    url=self._url,
                    state=state,
                    context_tokens=card.max_model_len or 0,
                ),
                heard_ago_s=0.0,
            )
            for card in self._models
        ]
        return DirectoryAnswer(cell=self._url, incarnation="", is_complete=True, replicas=tuple(listed))


def bearer(secret: PlaneSecret | None) -> dict[str, str]:
    """What the engine plane wants to see from a gateway."""
    return {} if secret is None else {"Authorization": f"Bearer {secret.sent}"}


class Model(msgspec.Struct, frozen=True):
    """A model as clients may see it."""

    name: str
    first_seen_s: int
    context_tokens: int
    states: dict[ReplicaState, int]


class Fleet:
    """The replicas there are. `follow` keeps it current; everything else only reads, waits, or reports a loss."""

    def __init__(
        self, sources: Sequence[Source], interval_s: float, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._sources = sources
        self._interval_s = interval_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._known: dict[str, Known] = {}
        self._lost_at: dict[str, float] = {}
        self._own: Counter[str] = Counter()
        self._unheard = {source.name for source in sources}
        #: Model → when it was first and last listed: seconds since the epoch, and on the clock.
        self._first_seen_s: dict[str, int] = {}
        self._last_listed_at: dict[str, float] = {}
        self._waiting: dict[asyncio.Future[None], str] = {}
        #: Cell → what its directory warns of.
        self._warnings: dict[str, frozenset[str]] = {}

    async def follow(self, session: aiohttp.ClientSession) -> None:
        """Poll every source until cancelled."""
        async with asyncio.TaskGroup() as polls:
            for source in self._sources:
                polls.create_task(self._follow_one(source, session))

    async def _follow_one(self, source: Source, session: aiohttp.ClientSession) -> None:
        is_silent = False
        while True:
            asked_at = self._clock()
            try:
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    answer = await source.ask(session)
            except (Silence, TimeoutError) as silence:
                if not is_silent:
                    log.warning("no answer from %s (%s); its replicas stay as they were", source.name, silence)
                is_silent = True
            else:
                is_silent = False
                self._unheard.discard(source.name)
                self.hear(answer, asked_at)
            await asyncio.sleep(self._interval_s)

    def hear(self, answer: DirectoryAnswer, asked_at: float) -> None:
        """Take in one answer and wake those whose model is ready now, in the order they came."""
        self._known = merge(self._known, answer, asked_at, self._own)
        self._lost_at = {lost: at for lost, at in self._lost_at.items() if lost in self._known}
        for replica in self._known.values():
            self._first_seen_s.setdefault(replica.report.model, int(self._wall_clock()))
            self._last_listed_at[replica.report.model] = asked_at
        self._tell_warnings(answer)
        for waiter, model in list(self._waiting.items()):
            if not waiter.done() and self.candidates(model):
                waiter.set_result(None)

    def _tell_warnings(self, answer: DirectoryAnswer) -> None:
        """Log what a cell's directory warns of when it begins, and when it ends: at every poll would be noise.

        A directory that has just started has forgotten what it warned of, so only a complete answer ends anything.
        """
        before, now = self._warnings.get(answer.cell, frozenset()), frozenset(answer.warnings)
        for warning in sorted(now - before):
            log.warning("%s warns: %s", answer.cell, warning)
        if answer.is_complete:
            for warning in sorted(before - now):
                log.info("%s no longer warns: %s", answer.cell, warning)
        self._warnings[answer.cell] = now if answer.is_complete else now | before

    def report_lost(self, replica_id: str) -> None:
        """It refused a connection: it gets no calls until it is heard ready again after now."""
        self._lost_at[replica_id] = self._clock()

    @contextmanager
    def committed(self, replica_id: str) -> Iterator[None]:
        """One request of ours is on this replica."""
        self._own[replica_id] += 1
        try:
            yield
        finally:
            self._own[replica_id] -= 1
            if not self._own[replica_id]:
                del self._own[replica_id]

    def candidates(self, model: str) -> list[Candidate]:
        """The ready replicas of a model."""
        return [
            Candidate(
                replica_id=replica.report.replica_id,
                url=replica.report.url,
                own_requests=self._own[replica.report.replica_id],
                own_when_heard=replica.own_when_heard,
                reported_requests=replica.report.load.running_requests + replica.report.load.waiting_requests,
            )
            for replica in ready(self._known, self._lost_at, model)
        ]

    async def wait_until_ready(self, model: str, deadline: float) -> None:
        """Return when a replica of `model` is ready, first come first woken; raises NoReplicaReady at the deadline."""
        while not self.candidates(model):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting[waiter] = model
            try:
                async with asyncio.timeout(deadline - self._clock()):
                    await waiter
            except TimeoutError:
                raise NoReplicaReady(f"The model '{model}' is not ready; try again soon.", retry_after_s=5) from None
            finally:
                del self._waiting[waiter]

    def may_know(self, model: str) -> bool:
        """False only when every source has answered and none has listed this model for a while."""
        if self._unheard:
            return True
        listed_at = self._last_listed_at.get(model)
        return listed_at is not None and self._clock() - listed_at < MODEL_MEMORY_S

    def lists(self, model: str) -> bool:
        """Has any source ever listed it? Only then may its name label a metric."""
        return model in self._last_listed_at

    def models(self) -> list[Model]:
        """Every model that some replica is for, in whatever state."""
        states: dict[str, Counter[ReplicaState]] = {}
        context_tokens: Counter[str] = Counter()
        for replica_id, replica in self._known.items():
            report = replica.report
            is_lost = replica.heard_at <= self._lost_at.get(replica_id, float("-inf"))
            state = ReplicaState.FAILED if is_lost else report.state
            states.setdefault(report.model, Counter())[state] += 1
            context_tokens[report.model] = max(context_tokens[report.model], report.context_tokens)
        return [
            Model(name, self._first_seen_s[name], context_tokens[name], dict(counts))
            for name, counts in sorted(states.items())
        ]
