"""Fleet: every replica of every cell, as last reported. Silence removes none; only an answer or a refused connection does."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set

import msgspec

from serving.config import Outliers as Limits
from serving.gateway.fleet.choice import Choice
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.outliers import Outliers
from serving.gateway.fleet.prefixes import Prefixes
from serving.gateway.fleet.replicas import Known, is_withdrawn, merge, ready, served_names
from serving.gateway.fleet.router import NO_NEED, Candidate, Need
from serving.gateway.fleet.standing import Commitment, Standing
from serving.wire import DirectoryAnswer, ListedModel, PromptFormat, ReplicaReport, ReplicaState

#: Seconds after which a model that no source lists any more is unknown (404) instead of not ready (503): a cold restart is
#: shorter.
MODEL_MEMORY_S = 3600.0
#: Seconds of silence after which a cell no longer takes its share of the demand; its replicas stay.
CELL_MEMORY_S = 30.0


#: Takes the state of a replica, or None where it is not listed.
Watcher = Callable[[ReplicaState | None], None]


class Model(msgspec.Struct, frozen=True):
    """A model as clients may see it."""

    name: str
    first_seen_s: int
    context_tokens: int
    states: dict[ReplicaState, int]
    #: Engines that should run, over all cells; None where no directory says so.
    wanted: int | None = None
    #: Its first call may have to wake it.
    may_sleep: bool = False
    #: Of an adapter, the model it belongs to.
    base: str | None = None
    #: Replicas of it that this gateway has ejected as outliers, and those that come back.
    ejected: int = 0
    returning: int = 0
    #: Calls that this gateway holds for it, because no replica can take them.
    waiting_requests: int = 0
    #: Seconds the first of them has waited.
    oldest_wait_s: float = 0.0


class Fleet:
    """The replicas there are. The polls bring answers; everything else reads, or reports a loss."""

    def __init__(
        self,
        source_names: Iterable[str],
        demands: Demands,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        outliers: Outliers | None = None,
        random_: Callable[[], float] = random.random,
        prefixes: Prefixes | None = None,
    ) -> None:
        #: Which replicas fail more than others: calls report it, and go by it.
        self.outliers = outliers or Outliers(Limits(), clock)
        self._demands = demands
        self._clock = clock
        self._wall_clock = wall_clock
        self._known: dict[str, Known] = {}
        self._lost_at: dict[str, float] = {}
        self._choice = Choice(self._ready, clock, random_, prefixes)
        #: Replica → what its running calls want to know of it after every answer.
        self._watchers: dict[str, list[Watcher]] = {}
        #: Sources that have not answered yet: what they serve is not known.
        self._unanswered = set(source_names)
        #: Called after every answer: those who wait look again.
        self._observers: list[Callable[[], None]] = []
        #: Model → when it was first and last listed: seconds since the epoch, and on the clock.
        self._first_seen_s: dict[str, int] = {}
        self._last_listed_at: dict[str, float] = {}
        #: Adapter → its model.
        self._base_of: dict[str, str] = {}
        #: Cell → what it serves, whether a replica runs or not; and when it said so.
        self._listed: dict[str, dict[str, ListedModel]] = {}
        self._answered_at: dict[str, float] = {}
        #: Cell → its warnings when it last answered.
        self._warnings: dict[str, tuple[str, ...]] = {}
        #: Cell → gateways that ask it.
        self._gateways: dict[str, int] = {}
        #: Names that some cell has listed so: when none does any more they are unknown at once.
        self._planned: set[str] = set()

    def observe(self, observer: Callable[[], None]) -> None:
        """Call `observer` after every answer that is taken in."""
        self._observers.append(observer)

    def take(self, answer: DirectoryAnswer, asked_at: float, source: str = "") -> None:
        """Take in one answer of a source, asked at `asked_at` on the clock."""
        self._unanswered.discard(source)
        before, self._known = self._known, merge(self._known, answer, asked_at)
        self._lost_at = {lost: lost_at for lost, lost_at in self._lost_at.items() if lost in self._known}
        self._choice.take(before, self._known)
        self._listed[answer.cell] = {model.name: model for model in answer.models}
        self._answered_at[answer.cell] = asked_at
        self._warnings[answer.cell] = answer.warnings
        self._gateways[answer.cell] = answer.gateways
        self._planned |= {name for model in answer.models for name in (model.name, *model.adapters)}
        for replica in self._known.values():
            report = replica.report
            self._take_names(report.model, report.adapters, asked_at)
        for listed in answer.models:
            self._take_names(listed.name, listed.adapters, asked_at)
        for observer in self._observers:
            observer()
        for replica_id, watchers in list(self._watchers.items()):
            known = self._known.get(replica_id)
            for watcher in list(watchers):
                watcher(known.report.state if known else None)

    def _take_names(self, model: str, adapters: Sequence[str], listed_at: float) -> None:
        self._base_of.pop(model, None)  # it may have been an adapter's name
        self._base_of |= dict.fromkeys(adapters, model)
        for name in (model, *adapters):
            self._first_seen_s.setdefault(name, int(self._wall_clock()))
            self._last_listed_at[name] = listed_at

    def count_gateways(self) -> int:
        """Gateways before this fleet, this one among them; 0 where no cell counts them."""
        return max(self._gateways.values(), default=0)

    def warnings(self) -> list[str]:
        """What cells want their operator to know: GPUs that are suspect, engines that were taken out."""
        return sorted({warning for warnings in self._warnings.values() for warning in warnings})

    def listed(self, cell: str) -> dict[str, ListedModel]:
        """What a cell said last time that it serves."""
        return self._listed.get(cell, {})

    def cells_serving(self) -> Counter[str]:
        """Model → cells that list it and have answered lately: they share its demand."""
        since = self._clock() - CELL_MEMORY_S
        alive = [models for cell, models in self._listed.items() if self._answered_at[cell] >= since]
        return Counter(name for models in alive for name in models)

    def base_of(self, name: str) -> str:
        """The model whose engines serve this name: itself, or an adapter's base."""
        return self._base_of.get(name, name)

    def default_output_tokens(self, name: str) -> int:
        """Output tokens of a call that sets no limit of its own; 0 means that there is no default.

        Where cells differ it is the least, because a call may go to any of them. An engine refuses a limit above its
        context.
        """
        base = self.base_of(name)
        limits = [
            min(listed.default_output_tokens, listed.context_tokens or listed.default_output_tokens)
            for listed in self._all_listed()
            if listed.name == base and listed.default_output_tokens
        ]
        return min(limits, default=0)

    def prompt_format(self, name: str) -> PromptFormat | None:
        """How this model's conversations become prompts; cells do not differ in it."""
        base = self.base_of(name)
        formats = (listed.prompt_format for listed in self._all_listed() if listed.name == base)
        return next((PromptFormat(known) for known in formats if known in frozenset(PromptFormat)), None)

    def report_lost(self, replica_id: str) -> None:
        """It refused a connection: it gets no calls until it reports READY again after now."""
        self._lost_at[replica_id] = self._clock()
        self._choice.lose(replica_id)

    def committed(self, replica_id: str, need: Need = NO_NEED) -> Commitment:
        """One request of ours is on this replica from now on, until the end of its `with`."""
        return self._choice.committed(replica_id, need)

    def watch(self, replica_id: str, watcher: Watcher) -> None:
        """From now on `watcher` gets the replica's state after every answer; None when it is not listed any more."""
        self._watchers.setdefault(replica_id, []).append(watcher)

    def unwatch(self, replica_id: str, watcher: Watcher) -> None:
        """It gets nothing more."""
        watchers = self._watchers[replica_id]
        watchers.remove(watcher)
        if not watchers:
            del self._watchers[replica_id]

    def is_ready(self, model: str) -> bool:
        """Is any replica ready for this model or adapter?"""
        return self.count_ready(model) > 0

    def count_ready(self, model: str) -> int:
        """Replicas that are ready for this model or adapter."""
        return self._choice.count_ready(model)

    def standings(self, model: str) -> Collection[Standing]:
        """The replicas that are ready for this model, as they last reported."""
        return self._choice.standings(model)

    def best(self, model: str, need: Need = NO_NEED, suspects: Set[str] = frozenset()) -> Candidate | None:
        """The first of `router.rank` among a model's ready replicas that are not suspected; None where there is none."""
        return self._choice.best(model, need, suspects)

    def candidates(self, model: str, need: Need = NO_NEED) -> list[Candidate]:
        """The ready replicas of a model."""
        return self._choice.candidates(model, need)

    def _ready(self, model: str) -> list[Known]:
        return ready(self._known, self._lost_at, model)

    def may_sleep(self, model: str) -> bool:
        """May it, or its base, have no replica at all, so that a call has to wake it?"""
        base = self.base_of(model)
        return any(listed.may_sleep for listed in self._all_listed() if listed.name == base)

    def may_know(self, model: str) -> bool:
        """False only when every source has answered and none has listed this model for a while, or an adapter now.

        What a cell's settings named is unknown as soon as they no longer do and its last replica has gone.
        """
        if self._unanswered:
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
        models = self._with_states(lambda listed: (listed.name,), lambda report: (report.model,))
        return [msgspec.structs.replace(it, **self.outliers.states(it.name)) for it in models]

    def known(self) -> list[Known]:
        """Every replica, as it last reported, by its name."""
        return [self._known[replica_id] for replica_id in sorted(self._known)]

    def state_of(self, replica: Known) -> ReplicaState:
        """What it said, unless it refused a connection since."""
        is_lost = replica.reported_at <= self._lost_at.get(replica.report.replica_id, float("-inf"))
        return ReplicaState.FAILED if is_lost else replica.report.state

    def plans(self, model: str) -> list[ListedModel]:
        """What cells say of a model, whether replicas of it run or not."""
        return [listed for listed in self._all_listed() if listed.name == model]

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
        for replica in self._known.values():
            for name in reported_names(replica.report):
                states.setdefault(name, Counter())[self.state_of(replica)] += 1
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
        return is_planned or any(name in served_names(replica.report) for replica in self._known.values())

    def _all_listed(self) -> Iterator[ListedModel]:
        for models in self._listed.values():
            yield from models.values()
