"""Swarm: the part that is Locust's (LT-1, LT-2). Workers start each session when it is due and report its outcome to the master.

    master ── share (every n-th session, and the instant of the start) ──► worker: one greenlet a session
           ◄── outcomes, Locust's own statistics, done ──────────────────

Alone, or with workers, the same messages pass. Importing this imports locust, which patches sockets: it is imported by
processes that send load, and by nothing else.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.pool
import msgspec
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser
from locust.rpc import Message
from locust.runners import LocalRunner, MasterRunner, Runner, WorkerRunner
from locust.stats import StatsEntry

from loadtest import arrivals, watch
from loadtest.client import Api
from loadtest.conversations import Conversation, Voice
from loadtest.failures import Unfinished
from loadtest.figures import LocustEntry
from loadtest.outcomes import RequestOutcome
from loadtest.watch import Sighting
from loadtest.workload import Session
from serving.errors import Refusal

#: Seconds from handing out the shares to the start: alone, and while workers unpack theirs.
LEAD_S, LEAD_OF_WORKERS_S = 0.2, 3.0
#: Seconds between two reports of a worker, two looks at the replicas, and two lines of progress.
TELL_S, LOOK_S, PROGRESS_S = 1.0, 2.0, 10.0
#: Seconds a worker may take after the last deadline to say that it is done.
GRACE_S = 15.0


class Share(msgspec.Struct, frozen=True):
    """What one worker is handed. The key is not in it: workers read their own."""

    sessions: tuple[Session, ...]
    voice: Voice
    url: str
    #: Seconds of silence after which an answer counts as timed out.
    silence_s: float
    #: Seconds since the start at which what still runs is given up.
    deadline_s: float
    #: The start, in seconds since 1970: workers' clocks agree as well as NTP makes them.
    starts_at: float = 0.0


class Desk:
    """One worker's place: a share comes in, outcomes go out."""

    def __init__(self, environment: Environment, key: str) -> None:
        self._environment = environment
        self._key = key
        self._share: Share | None = None
        self._unsent: list[RequestOutcome] = []

    def take(self, environment: Environment, msg: Message, **_: Any) -> None:
        """Locust hands over the master's message."""
        self._share = msgspec.msgpack.decode(msg.data["share"], type=Share)

    def work(self) -> None:
        """Begin each session when it is due, whatever became of those before it; returns once all have ended."""
        share, self._share = self._share, None
        if share is None:
            return
        start = time.perf_counter() + share.starts_at - time.time()
        api = Api(share.url, self._key, share.silence_s, lambda: time.perf_counter() - start)
        telling = gevent.spawn(self._tell_for_ever)
        running = gevent.pool.Pool()
        for session in share.sessions:
            gevent.sleep(max(0.0, session.due_s - api.clock()))
            running.spawn(self._hold, api, session, share.voice)
        running.join(timeout=max(0.0, share.deadline_s - api.clock()))
        running.kill()
        telling.kill()
        self._close()

    def _hold(self, api: Api, session: Session, voice: Voice) -> None:
        """One conversation; a failed turn ends it."""
        conversation, due_s = Conversation(session, voice), session.due_s
        for turn in itertools.count():
            began_s = api.clock()
            try:
                outcome, answer = api.ask(session, turn, due_s, conversation.request())
            except gevent.GreenletExit:
                self._count(_unfinished(session, turn, due_s, began_s, api.clock()))
                return
            self._count(outcome)
            pause_s = conversation.take(answer) if answer else None
            if pause_s is None:
                return
            due_s = outcome.ended_s + pause_s
            gevent.sleep(pause_s)

    def _count(self, outcome: RequestOutcome) -> None:
        self._unsent.append(outcome)
        name = str(outcome.kind)
        self._environment.events.request.fire(  # type: ignore[no-untyped-call]  # Locust leaves it open.
            request_type="POST",
            name=name,
            response_time=outcome.latency_s * 1e3,
            response_length=0,
            exception=None if outcome.is_ok else f"{outcome.failure_kind}: {outcome.failure}",
            context={},
        )
        # Beside the requests, not among them: Locust's totals stay counts of requests.
        for method, value in _measured(outcome):
            self._environment.stats.get(name, method).log(value, 0)  # type: ignore[arg-type]  # It takes fractions too.

    def _tell_for_ever(self) -> None:
        while True:
            gevent.sleep(TELL_S)
            self._tell()

    def _tell(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent:
            _runner(self._environment).send_message("outcomes", {"outcomes": msgspec.msgpack.encode(unsent)})

    def _close(self) -> None:
        """Messages keep their order: when the master receives `done` it has received everything."""
        self._tell()
        runner = _runner(self._environment)
        if isinstance(runner, WorkerRunner):
            data: dict[str, Any] = {}
            report = self._environment.events.report_to_master
            report.fire(client_id=runner.client_id, data=data)  # type: ignore[no-untyped-call]  # As above.
            runner.send_message("stats", data)
        runner.send_message("done")


def _unfinished(session: Session, turn: int, due_s: float, began_s: float, now_s: float) -> RequestOutcome:
    failed = Unfinished("still under way at the end of the run")
    return RequestOutcome(session.number, turn, session.kind, due_s, began_s, now_s, failed.kind, str(failed))


def _measured(outcome: RequestOutcome) -> Iterator[tuple[str, float]]:
    """What Locust has no name for: milliseconds, and tokens a second."""
    if not outcome.is_ok or outcome.first_s is None:
        return
    yield "TTFT", (outcome.first_s - outcome.due_s) * 1e3
    for gap_s in outcome.gaps_s:
        yield "ITL", gap_s * 1e3
    if outcome.tpot_s is not None:
        yield "TPOT", outcome.tpot_s * 1e3
    if outcome.tokens_per_s is not None:
        yield "tokens/s", outcome.tokens_per_s


def _runner(environment: Environment) -> Runner:
    assert environment.runner is not None  # noqa: S101 -- Made before anything can ask.
    return environment.runner


def _user(work: Callable[[], None]) -> type[User]:
    """Locust's user: one on each worker, who begins the sessions of all users."""

    class Arrivals(User):
        @task
        def arrive(self) -> None:
            work()
            raise StopUser

    return Arrivals


class Gathered:
    """What the master has received."""

    def __init__(self) -> None:
        self.outcomes: list[RequestOutcome] = []
        self.sightings: list[Sighting] = []
        self.done = 0

    def take(self, environment: Environment, msg: Message, **_: Any) -> None:
        self.outcomes += msgspec.msgpack.decode(msg.data["outcomes"], type=list[RequestOutcome])

    def end(self, environment: Environment, msg: Message, **_: Any) -> None:
        self.done += 1


class Run(msgspec.Struct, frozen=True):
    """What a run left."""

    outcomes: list[RequestOutcome]
    sightings: list[Sighting]
    locust: list[LocustEntry]
    #: Seconds since the start at which somebody stopped it, or None.
    interrupted_s: float | None


def _allow_many_connections() -> None:
    """Each request has its own, and an overloaded stack holds thousands; the usual limit is 1,024 files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def alone(share: Share, key: str, metrics_url: str, tell: Callable[[str], None]) -> Run:
    """Send everything from this process."""
    _allow_many_connections()
    environment = Environment()
    desk = Desk(environment, key)
    environment.user_classes = [_user(desk.work)]
    runner = environment.create_local_runner()
    runner.register_message("share", desk.take)
    return _run(environment, runner, share, 1, metrics_url, tell)


def with_workers(
    share: Share, workers: int, bind: tuple[str, int], patience_s: float, metrics_url: str, tell: Callable[[str], None]
) -> Run:
    """Hand the sessions to so many workers; raises Refusal when they do not come within `patience_s`."""
    environment = Environment(user_classes=[_user(lambda: None)])
    runner = environment.create_master_runner(*bind)
    deadline = time.monotonic() + patience_s
    while len(runner.clients.ready) < workers:
        if time.monotonic() > deadline:
            came = len(runner.clients.ready)
            runner.quit()
            raise Refusal(
                f"{came} of {workers} workers came within {patience_s:.0f} s: start the others, or ask for fewer."
            )
        gevent.sleep(0.1)
    return _run(environment, runner, share, workers, metrics_url, tell)


def _run(
    environment: Environment,
    runner: LocalRunner | MasterRunner,
    share: Share,
    workers: int,
    metrics_url: str,
    tell: Callable[[str], None],
) -> Run:
    gathered = Gathered()
    runner.register_message("outcomes", gathered.take)
    runner.register_message("done", gathered.end)
    lead_s = LEAD_OF_WORKERS_S if isinstance(runner, MasterRunner) else LEAD_S
    starts_at = time.time() + lead_s
    start = time.perf_counter() + lead_s
    clock: Callable[[], float] = lambda: time.perf_counter() - start  # noqa: E731 -- Handed on, as Api's.
    _hand_out(runner, msgspec.structs.replace(share, starts_at=starts_at), workers)
    interrupted_s = None
    with _beside(lambda: _watch(metrics_url, clock, gathered)), _beside(lambda: _progress(clock, gathered, tell)):
        try:
            runner.start(workers, spawn_rate=workers)
            while gathered.done < workers and clock() < share.deadline_s + GRACE_S:
                gevent.sleep(0.1)
        except KeyboardInterrupt:
            interrupted_s = clock()
    entries = [_entry(it) for _, it in sorted(environment.stats.entries.items())]
    runner.quit()
    return Run(gathered.outcomes, gathered.sightings, entries, interrupted_s)


def _hand_out(runner: LocalRunner | MasterRunner, share: Share, workers: int) -> None:
    ids: Sequence[str | None] = [it.id for it in runner.clients.ready] if isinstance(runner, MasterRunner) else [None]
    for index, client_id in enumerate(ids[:workers]):
        part = msgspec.structs.replace(share, sessions=tuple(arrivals.share(share.sessions, index, workers)))
        runner.send_message("share", {"share": msgspec.msgpack.encode(part)}, client_id)


@contextmanager
def _beside(work: Callable[[], None]) -> Iterator[None]:
    """Something that goes on until the `with` ends."""
    greenlet = gevent.spawn(work)
    try:
        yield
    finally:
        greenlet.kill()


def _watch(url: str, clock: Callable[[], float], gathered: Gathered) -> None:
    while True:
        if seen := watch.look(url, clock):
            gathered.sightings.append(seen)
        gevent.sleep(LOOK_S)


def _progress(clock: Callable[[], float], gathered: Gathered, tell: Callable[[str], None]) -> None:
    while True:
        gevent.sleep(PROGRESS_S)
        failed = sum(not it.is_ok for it in gathered.outcomes)
        tell(f"{clock():6.0f} s: {len(gathered.outcomes)} requests ended, {failed} of them failed")


def _entry(it: StatsEntry) -> LocustEntry:
    return LocustEntry(
        method=it.method,
        name=it.name,
        requests=it.num_requests,
        failures=it.num_failures,
        median=it.median_response_time,
        average=it.avg_response_time,
        p95=it.get_response_time_percentile(0.95),
        max=it.max_response_time,
    )


def work(master: tuple[str, int], key: str) -> None:
    """Be a worker until the master says that it is over; raises Refusal when there is no master."""
    _allow_many_connections()
    environment = Environment()
    desk = Desk(environment, key)
    environment.user_classes = [_user(desk.work)]
    try:
        runner = environment.create_worker_runner(*master)
    except ConnectionError:
        raise Refusal(f"No master answers at {master[0]}:{master[1]}: start it first.") from None
    runner.register_message("share", desk.take)
    runner.greenlet.join()
