"""Fleet: every replica of every cell, as last heard. Silence removes nobody; only an answer, or a refused connection does.

Directories and engines without one are polled; what they say is merged by pure functions over plain data.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import aiohttp
import msgspec

from serving.config import GatewaySettings
from serving.errors import GatewayFull, NoReplicaReady
from serving.gateway.fleet.demand import Demands, Reading, shared
from serving.gateway.fleet.router import Candidate
from serving.gateway.fleet.sources import Silence, Source
from serving.wire import (
    DirectoryAnswer,
    GatewayReport,
    ListedModel,
    ReplicaReport,
    ReplicaState,
    Traffic,
)

#: Seconds after which a model nobody lists any more is unknown (404) instead of not ready (503): a cold restart is shorter.
MODEL_MEMORY_S = 3600.0
#: Seconds of silence after which a cell no longer takes its share of the demand; its replicas stay.
CELL_MEMORY_S = 30.0
#: Seconds a poll may take; a directory answers in milliseconds.
POLL_TIMEOUT_S = 5.0
#: Reports closer together than this are the same one, seen through the network's jitter.
SAME_REPORT_S = 0.05

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
    """Replicas that may get a call for a model or an adapter: said READY, and after the last refused connection.

    One per address.
    """
    by_url: dict[str, Known] = {}
    for replica_id, replica in known.items():
        report = replica.report
        if model not in names(report) or report.state is not ReplicaState.READY or report.rank:
            continue
        if replica.heard_at <= lost_at.get(replica_id, float("-inf")):
            continue
        twin = by_url.get(report.url)
        if twin is None or replica.heard_at > twin.heard_at:
            by_url[report.url] = replica
    return list(by_url.values())


def names(report: ReplicaReport) -> tuple[str, ...]:
    """What a replica answers to: its model, and the adapters it offers."""
    return (report.model, *report.adapters)


def is_withdrawn(known: Mapping[str, Known], adapter: str, base: str) -> bool:
    """Does a ready replica of its base say that it has this adapter no longer, and does nobody offer it?

    While no replica is ready, nobody knows: they may be restarting.
    """
    reports = [replica.report for replica in known.values() if replica.report.model == base]
    is_base_ready = any(report.state is ReplicaState.READY for report in reports)
    return is_base_ready and not any(adapter in report.adapters for report in reports)


class Model(msgspec.Struct, frozen=True):
    """A model as clients may see it."""

    name: str
    first_seen_s: int
    context_tokens: int
    states: dict[ReplicaState, int]
    #: Engines that should run, over all cells; None where nobody says so.
    wanted: int | None = None
    #: Its first call may have to wake it.
    may_sleep: bool = False
    #: Of an adapter, the model it belongs to.
    base: str | None = None
    #: Calls that this gateway holds for it, because no replica can take them.
    waiting_requests: int = 0
    #: Seconds the first of them has waited.
    oldest_wait_s: float = 0.0


class Fleet:
    """The replicas there are. `follow` keeps it current; everything else only reads, waits, or reports a loss."""

    def __init__(
        self,
        sources: Sequence[Source],
        settings: GatewaySettings,
        demands: Demands,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._sources = sources
        self._interval_s = settings.poll_interval_s
        self._waiting_max = settings.max_waiting_requests
        self._demands = demands
        self._id = uuid.uuid4().hex
        self._clock = clock
        self._wall_clock = wall_clock
        self._known: dict[str, Known] = {}
        self._lost_at: dict[str, float] = {}
        self._own: Counter[str] = Counter()
        self._unheard = {source.name for source in sources}
        #: Names of sources that did not answer the last poll.
        self._silent: set[str] = set()
        #: Model → when it was first and last listed: seconds since the epoch, and on the clock.
        self._first_seen_s: dict[str, int] = {}
        self._last_listed_at: dict[str, float] = {}
        #: Adapter → its model.
        self._base_of: dict[str, str] = {}
        self._waiting: dict[asyncio.Future[None], str] = {}
        #: Cell → what it serves, whether a replica runs or not; and when it said so.
        self._listed: dict[str, dict[str, ListedModel]] = {}
        self._answered_at: dict[str, float] = {}
        #: Names that some cell has listed so: when none does any more they are unknown at once.
        self._planned: set[str] = set()
        #: Cell → what its directory warns of.
        self._warnings: dict[str, frozenset[str]] = {}

    async def follow(self, session: aiohttp.ClientSession) -> None:
        """Poll every source until cancelled."""
        async with asyncio.TaskGroup() as polls:
            for source in self._sources:
                polls.create_task(self._follow_one(source, session))

    async def _follow_one(self, source: Source, session: aiohttp.ClientSession) -> None:
        told = self._demands.read()
        while True:
            asked_at = self._clock()
            telling = self._demands.read()
            try:
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    answer = await source.ask(
                        session, GatewayReport(self._id, telling.at - told.at, self._traffic(told, telling))
                    )
            except (Silence, TimeoutError) as silence:
                if source.name not in self._silent:
                    log.warning("no answer from %s (%s); its replicas stay as they were", source.name, silence)
                self._silent.add(source.name)
            else:
                self._silent.discard(source.name)
                told = telling
                self._unheard.discard(source.name)
                self.hear(answer, asked_at)
            await asyncio.sleep(self._interval_s)

    def _traffic(self, told: Reading, telling: Reading) -> dict[str, Traffic]:
        heard_since = self._clock() - CELL_MEMORY_S
        alive = [models for cell, models in self._listed.items() if self._answered_at[cell] >= heard_since]
        cells = Counter(name for models in alive for name in models)
        return {name: shared(it, cells[name]) for name, it in self._demands.since(told, telling).items()}

    def hear(self, answer: DirectoryAnswer, asked_at: float) -> None:
        """Take in one answer and wake those whose model is ready now, in the order they came."""
        self._known = merge(self._known, answer, asked_at, self._own)
        self._lost_at = {lost: at for lost, at in self._lost_at.items() if lost in self._known}
        self._tell_wanted(answer)
        self._listed[answer.cell] = {model.name: model for model in answer.models}
        self._answered_at[answer.cell] = asked_at
        self._planned |= {name for model in answer.models for name in (model.name, *model.adapters)}
        for replica in self._known.values():
            self._take_names(replica.report.model, replica.report.adapters, asked_at)
        for listed in answer.models:
            self._take_names(listed.name, listed.adapters, asked_at)
        self._tell_warnings(answer)
        for waiter, model in list(self._waiting.items()):
            if not waiter.done() and self.candidates(model):
                waiter.set_result(None)

    def _take_names(self, model: str, adapters: Sequence[str], at: float) -> None:
        self._base_of.pop(model, None)  # it may have been an adapter's name
        self._base_of |= dict.fromkeys(adapters, model)
        for name in (model, *adapters):
            self._first_seen_s.setdefault(name, int(self._wall_clock()))
            self._last_listed_at[name] = at

    def base_of(self, name: str) -> str:
        """The model whose engines serve this name: itself, or an adapter's base."""
        return self._base_of.get(name, name)

    def _tell_wanted(self, answer: DirectoryAnswer) -> None:
        """Log how many engines a cell wants of a model, and what they wait for, whenever either changes."""
        before = self._listed.get(answer.cell, {})
        for model in answer.models:
            known = before.get(model.name, ListedModel(model.name))
            if model.wanted is not None and known.wanted != model.wanted:
                log.info("%s wants %d engines of %s: %s", answer.cell, model.wanted, model.name, model.reason)
            if model.shortage and known.shortage != model.shortage:
                log.warning("%s, model %s: %s", answer.cell, model.name, model.shortage)

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

    async def wait_until_ready(self, model: str, deadline: float, prompt_tokens: int = 0) -> None:
        """Return when a replica of `model` is ready, first come first woken.

        Raises NoReplicaReady at the deadline, and GatewayFull when too many wait for this model already.
        """
        base = self.base_of(model)
        if self._demands.held_requests(base) >= self._waiting_max:
            raise GatewayFull("Too many requests wait for a model to start; please try again.", retry_after_s=5)
        while not self.candidates(model):
            # Where its base is ready and does not offer an adapter, more engines would not either.
            held = nullcontext() if self.candidates(base) else self._demands.held(base, prompt_tokens)
            with held:
                await self._wait(model, deadline)

    async def _wait(self, model: str, deadline: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = model
        try:
            async with asyncio.timeout(deadline - self._clock()):
                await waiter
        except TimeoutError:
            raise NoReplicaReady(f"The model '{model}' is not ready; try again soon.", retry_after_s=5) from None
        finally:
            del self._waiting[waiter]

    def sources_up(self) -> dict[str, bool]:
        """Source → did it answer the last poll?"""
        return {source.label: source.name not in self._silent | self._unheard for source in self._sources}

    def may_sleep(self, model: str) -> bool:
        """May it, or its base, have no replica at all, so that a call has to wake it?"""
        base = self.base_of(model)
        return any(listed.may_sleep for listed in self._all_listed() if listed.name == base)

    def may_know(self, model: str) -> bool:
        """False only when every source has answered and none has listed this model for a while, or an adapter now.

        What a cell's settings named is unknown as soon as they no longer do and its last replica has gone.
        """
        if self._unheard:
            return True
        base = self._base_of.get(model)
        if base is not None and is_withdrawn(self._known, model, base):
            return False
        if model in self._planned and not self._is_listed(model):
            return False
        listed_at = self._last_listed_at.get(model)
        return listed_at is not None and self._clock() - listed_at < MODEL_MEMORY_S

    def lists(self, model: str) -> bool:
        """Has any source ever listed it? Only then may its name label a metric."""
        return model in self._last_listed_at

    def models(self) -> list[Model]:
        """Every model that some replica is for, in whatever state, or that a cell serves without one now."""
        return self._with_states(lambda listed: (listed.name,), lambda report: (report.model,))

    def adapters(self) -> list[Model]:
        """Every adapter that some replica offers; of a model without any, those that the settings name."""
        here = {replica.report.model for replica in self._known.values()}
        return self._with_states(
            lambda listed: () if listed.name in here else listed.adapters, lambda report: report.adapters
        )

    def _with_states(
        self,
        listed_names: Callable[[ListedModel], Sequence[str]],
        reported_names: Callable[[ReplicaReport], Sequence[str]],
    ) -> list[Model]:
        states: dict[str, Counter[ReplicaState]] = {}
        context_tokens: Counter[str] = Counter()
        wanted: Counter[str] = Counter()
        for listed in self._all_listed():
            for name in listed_names(listed):
                states.setdefault(name, Counter())
                context_tokens[name] = max(context_tokens[name], listed.context_tokens)
                if listed.wanted is not None:
                    wanted[name] += listed.wanted
        for replica_id, replica in self._known.items():
            is_lost = replica.heard_at <= self._lost_at.get(replica_id, float("-inf"))
            state = ReplicaState.FAILED if is_lost else replica.report.state
            for name in reported_names(replica.report):
                states.setdefault(name, Counter())[state] += 1
                context_tokens[name] = max(context_tokens[name], replica.report.context_tokens)
        return [
            Model(
                name=name,
                first_seen_s=self._first_seen_s[name],
                context_tokens=context_tokens[name],
                states=dict(counts),
                wanted=wanted.get(name),
                may_sleep=self.may_sleep(name),
                base=self._base_of.get(name),
                waiting_requests=self._demands.held_requests(name),
                oldest_wait_s=self._demands.oldest_wait_s(name),
            )
            for name, counts in sorted(states.items())
        ]

    def _is_listed(self, name: str) -> bool:
        is_planned = any(name in (listed.name, *listed.adapters) for listed in self._all_listed())
        return is_planned or any(name in names(replica.report) for replica in self._known.values())

    def _all_listed(self) -> Iterator[ListedModel]:
        for models in self._listed.values():
            yield from models.values()
