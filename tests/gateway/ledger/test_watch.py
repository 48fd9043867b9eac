"""Watch: rows that a dead gateway left open are closed by the live ones, and no live gateway is taken for dead."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest

from serving.errors import StoreUnavailable
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.watch import BEAT_S, CHECKS_MAX, Watch, own_gateway_id
from serving.gateway.nouns import Caller, CallRecord, Outcome, Usage
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.calls import open_call
from tests.gateway.places import Place, PostgresPlace
from tests.waiting import until

CALLER = Caller("t1", "acme", "k1")
DEAD_AFTER_S = BEAT_S * CHECKS_MAX


class Gateway:
    """A gateway's ledger, moved by hand: no thread runs, and all gateways share one clock."""

    def __init__(self, store: Store, clock: Clock, name: str) -> None:
        self.ledger = Ledger(store, clock=clock, gateway_id=f"{name}:1:1")
        self.ledger.flush()

    @contextmanager
    def call(self, request_id: str) -> Iterator[CallRecord]:
        with open_call(self.ledger, request_id, caller=CALLER) as call:
            assert self.ledger.flush()
            yield call
        self.ledger.flush()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.open() as store:
        yield store


def rows(place: Place) -> list[tuple[object, ...]]:
    return place.execute("select request_id, outcome, estimated_by, prompt_tokens from ledger order by request_id")


def pass_time(clock: Clock, seconds: float, *living: Gateway) -> None:
    for _ in range(round(seconds / BEAT_S)):
        clock.advance(BEAT_S)
        for gateway in living:
            gateway.ledger.flush()


def test_what_a_killed_gateway_left_open_is_closed_by_another_after_a_minute(
    place: Place, store: Store, clock: Clock
) -> None:
    """No start is needed and no machine in common: any gateway that runs notices the silence, and not too soon."""
    killed, other = Gateway(store, clock, "pod-a"), Gateway(store, clock, "pod-b")
    killed.call("r1").__enter__()

    pass_time(clock, DEAD_AFTER_S - BEAT_S, other)
    assert rows(place) == [("r1", "open", None, 0)]
    pass_time(clock, BEAT_S, other)
    assert rows(place) == [("r1", "gateway_crashed", "gateway_crashed", 0)]
    assert place.execute("select id from gateways") == [("pod-b:1:1",)]


def test_gateways_know_how_many_they_are(store: Store, clock: Clock) -> None:
    """Limits are shared among so many while their counters are away: one that has died counts for a minute, one that left does not."""
    gateways = [Gateway(store, clock, f"pod-{name}") for name in "abc"]
    assert [it.ledger.gateways for it in gateways] == [1, 2, 3]
    pass_time(clock, BEAT_S, *gateways)
    assert [it.ledger.gateways for it in gateways] == [3, 3, 3]
    pass_time(clock, DEAD_AFTER_S - BEAT_S, *gateways[:2])
    assert gateways[0].ledger.gateways == 3
    pass_time(clock, 2 * BEAT_S, *gateways[:2])
    assert gateways[0].ledger.gateways == 2
    gateways[1].ledger.stop()
    pass_time(clock, BEAT_S, gateways[0])
    assert gateways[0].ledger.gateways == 1


def test_a_gateway_that_lives_keeps_its_calls(place: Place, store: Store, clock: Clock) -> None:
    """A call may take an hour; its gateway's heartbeat is enough."""
    busy, other = Gateway(store, clock, "pod-a"), Gateway(store, clock, "pod-b")
    with busy.call("r1"):
        pass_time(clock, DEAD_AFTER_S * 10, busy, other)

        assert rows(place) == [("r1", "open", None, 0)]


def test_a_gateway_that_was_only_cut_off_writes_the_true_end(place: Place, store: Store, clock: Clock) -> None:
    """Taken for dead while it could not reach the database, it comes back, beats again, and its rows say what happened."""
    cut_off, other = Gateway(store, clock, "pod-a"), Gateway(store, clock, "pod-b")
    with cut_off.call("r1") as call, cut_off.call("r2"):
        pass_time(clock, DEAD_AFTER_S + BEAT_S, other)
        assert {row[1] for row in rows(place)} == {"gateway_crashed"}
        call.usage, call.outcome, call.status = Usage(7, 3), Outcome.OK, 200

    assert rows(place) == [("r1", "ok", None, 7), ("r2", "error", None, 0)]
    assert sorted(place.execute("select id from gateways")) == [("pod-a:1:1",), ("pod-b:1:1",)]


def test_an_outage_of_the_database_kills_no_gateway(place: Place, store: Store, clock: Clock) -> None:
    """After it every heartbeat is old; the first gateway to reconnect does not close the others' calls."""
    first, second = Gateway(store, clock, "pod-a"), Gateway(store, clock, "pod-b")
    with first.call("r1"), second.call("r2"):
        pass_time(clock, BEAT_S, second, first)
        place.take_away()
        pass_time(clock, DEAD_AFTER_S * 3, first, second)
        place.bring_back()
        pass_time(clock, BEAT_S, first)
        pass_time(clock, BEAT_S, first, second)

        assert [row[1] for row in rows(place)] == ["open", "open"]


def test_a_clock_that_is_set_back_silences_no_gateway(place: Place, store: Store, clock: Clock) -> None:
    """Heartbeats are compared with each other, never with a clock."""
    steady, moved = Gateway(store, Clock(), "pod-a"), Gateway(store, clock, "pod-b")
    with moved.call("r1"):
        clock.advance(-86_400)
        moved.ledger.flush()
        (beat,) = place.execute("select count(*) from gateways where seen_at < '1970-01-01'")
        assert beat == (1,)
        steady.ledger.flush()
    assert [row[1] for row in rows(place)] == ["error"]


def test_several_watchers_close_rows_once(
    place: Place, store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """All of them notice in the same moment; one closes the rows, none fails."""
    caplog.set_level(logging.WARNING)
    killed = Gateway(store, clock, "pod-a")
    killed.call("r1").__enter__()
    watches = [Watch(store, f"pod-{number}:1:1", clock) for number in range(4)]
    for _ in range(CHECKS_MAX):
        for watch in watches:
            watch.check_if_due()
        clock.advance(BEAT_S)
    failures: list[str] = []

    def look(watch: Watch) -> None:
        for _ in range(100):
            try:
                watch.check_if_due()
            except StoreUnavailable as error:
                failures.append(error.reason)
            else:
                return

    threads = [threading.Thread(target=look, args=(watch,)) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert rows(place) == [("r1", "gateway_crashed", "gateway_crashed", 0)]
    assert [record.getMessage() for record in caplog.records if "died" in record.getMessage()] == [
        "1 calls were open in gateway pod-a:1:1, which died"
    ]
    # SQLite may refuse a writer that began by reading; the ledger's thread comes back.
    assert set(failures) <= {"database is locked"}


def test_a_heartbeat_at_the_last_moment_counts(shared: PostgresPlace, clock: Clock) -> None:
    """A gateway that beats while it is being buried keeps its calls: the watcher sees the new beat before it closes."""
    with shared.open() as store:
        late, watch = Gateway(store, clock, "pod-a"), Watch(store, "pod-b:1:1", clock)
        late.call("r1").__enter__()
        for _ in range(CHECKS_MAX):
            watch.check_if_due()
            clock.advance(BEAT_S)
        with psycopg.connect(shared.server.url(shared.database)) as beating:
            beating.execute("update gateways set seen_at = seen_at + interval '1 minute' where id = 'pod-a:1:1'")
            look = threading.Thread(target=watch.check_if_due)
            look.start()
            until(lambda: shared.execute("select 1 from pg_stat_activity where wait_event_type = 'Lock'"))
        look.join()

        assert rows(shared) == [("r1", "open", None, 0)]


def test_a_process_of_this_machine_is_judged_by_itself(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> None:
    """With SQLite a process that stands still is not dead, however long, and one that is gone is so at once."""
    host, pid, start = own_gateway_id().rsplit(":", 2)
    with Store.open(tmp_path_factory.mktemp("home")) as store, ExitStack() as calls:
        still, gone = Gateway(store, clock, "x"), Gateway(store, clock, "y")
        still.ledger = Ledger(store, clock=clock, gateway_id=own_gateway_id())
        gone.ledger = Ledger(store, clock=clock, gateway_id=f"{host}:{pid}:{int(start) - 1}")
        for gateway, request_id in ((still, "still"), (gone, "gone")):
            calls.enter_context(gateway.call(request_id))
        watch = Watch(store, "other:1:1", clock)
        for _ in range(CHECKS_MAX * 2):
            watch.check_if_due()
            clock.advance(BEAT_S)

        with store.begin() as connection:
            found = connection.exec_driver_sql("select request_id, outcome from ledger order by request_id").all()
    assert [tuple(row) for row in found] == [("gone", "gateway_crashed"), ("still", "open")]


def test_one_host_name_is_not_one_machine(shared: PostgresPlace, clock: Clock) -> None:
    """On a shared store a gateway with this host's name and a process id unknown here is judged by its heartbeat."""
    host = own_gateway_id().rsplit(":", 2)[0]
    with shared.open() as store:
        namesake, other = Gateway(store, clock, host), Gateway(store, clock, "pod-b")
        with namesake.call("r1"):
            pass_time(clock, DEAD_AFTER_S * 2, namesake, other)

            assert rows(shared) == [("r1", "open", None, 0)]


def test_a_gateway_that_ends_in_good_order_takes_its_heartbeat_along(place: Place, store: Store) -> None:
    """The table holds the gateways that run, and does not grow with every pod."""
    with Ledger(store, clock=time.time):
        until(lambda: place.execute("select count(*) from gateways") == [(1,)])
    assert place.execute("select count(*) from gateways") == [(0,)]
