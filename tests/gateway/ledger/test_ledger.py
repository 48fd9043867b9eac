"""The ledger: every call leaves one row, whatever happens to the call, the database or the gateway."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from serving.config import StoreSettings
from serving.errors import Refusal, StoreUnavailable
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import CallRecord, Outcome, Usage
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.calls import CALLER, CHAT_ROUTE, open_call, rows, settle
from tests.gateway.places import Place, SqlitePlace
from tests.gateway.processes import at_once
from tests.waiting import until

WRITER = """
import sys, time
from serving.config import load
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Caller, CallRecord, Outcome, Usage
from serving.gateway.store.store import Store

name, settled, left_open = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
caller, settings = Caller("t1", "acme", "k1"), load()
with Store.open(settings.home, settings.store) as store, Ledger(store, clock=time.time) as ledger:
    for number in range(settled):
        call = CallRecord(request_id=f"{name}-{number}", started_at=0.0, caller=caller)
        ledger.open(call)
        call.usage, call.outcome, call.status = Usage(7, 3), Outcome.OK, 200
        ledger.close(call)
    for number in range(left_open):
        ledger.open(CallRecord(request_id=f"{name}-open-{number}", started_at=0.0, caller=caller))
    if left_open:
        while ledger.pending_rows:
            time.sleep(0.01)
        print("written", flush=True)
        time.sleep(600)
"""


def start(place: Place, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = dict(os.environ) | place.environment()
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], env=environment, text=True, **options)


def test_a_settled_call_is_one_complete_row(place: Place, store: Store) -> None:
    """What the entry says when the call ends is what the row says."""
    clock = Clock(1000.25)
    with (
        Ledger(store, clock=clock, gateway_id="elsewhere:1:1") as ledger,
        open_call(ledger, "r1", caller=CALLER, model="alias") as call,
    ):
        call.model, call.replica_id = "smollm2", "replica-1"
        call.usage, call.outcome, call.status = Usage(11, 7, 4, 2, "bytes"), Outcome.DISCONNECTED, 499
        clock.advance(2.25)

    columns = (
        "request_id, tenant_id, key_id, route, model, replica_id, outcome, status, prompt_tokens, completion_tokens,"
        " cached_prompt_tokens, reasoning_tokens, estimated_by, gateway_id, cast(started_at as varchar(40)), cast(finished_at as varchar(40))"
    )
    texts = ("r1", "t1", "k1", CHAT_ROUTE.label, "smollm2", "replica-1", "client_disconnected")
    ((*said, started_at, finished_at),) = rows(place, columns)
    assert said == [*texts, 499, 11, 7, 4, 2, "bytes", "elsewhere:1:1"]
    assert [str(moment).rstrip("0") for moment in (started_at, finished_at)] == [
        "1970-01-01 00:16:40.25",
        "1970-01-01 00:16:42.5",
    ]


def test_a_call_that_fails_unforeseen_is_written_as_an_error(place: Place, store: Store) -> None:
    """A row that was never settled says so: outcome error, status 500, no tokens."""
    with (
        Ledger(store, clock=time.time) as ledger,
        pytest.raises(ZeroDivisionError),
        open_call(ledger, "r1", caller=CALLER),
    ):
        raise ZeroDivisionError

    assert rows(place) == [("r1", "error", 500)]


def test_a_cancelled_call_is_written(place: Place, store: Store) -> None:
    """A client that leaves cancels the handler; its row is written on that way out too."""

    async def call(ledger: Ledger, is_open: asyncio.Event) -> None:
        with open_call(ledger, "r1", caller=CALLER) as call:
            call.outcome, call.status = Outcome.DISCONNECTED, 499
            is_open.set()
            await asyncio.Event().wait()

    async def cancel(ledger: Ledger) -> None:
        is_open = asyncio.Event()
        handler = asyncio.create_task(call(ledger, is_open))
        await is_open.wait()
        handler.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handler

    with Ledger(store, clock=time.time) as ledger:
        asyncio.run(cancel(ledger))

    assert rows(place) == [("r1", Outcome.DISCONNECTED, 499)]


def test_an_open_call_is_in_the_database_while_it_runs(place: Place, store: Store) -> None:
    """The opening is written without waiting for the end, and the end replaces it."""
    with Ledger(store, clock=time.time) as ledger:
        with open_call(ledger, "r1", caller=CALLER) as call:
            until(lambda: rows(place) == [("r1", "open", 0)])
            call.outcome, call.status = Outcome.OK, 200
        until(lambda: rows(place) == [("r1", Outcome.OK, 200)])


def test_a_thousand_calls_at_once_are_all_there(place: Place, store: Store) -> None:
    """Concurrency loses nothing and doubles nothing."""

    async def call(ledger: Ledger, number: int) -> None:
        with open_call(ledger, f"r{number:04}", caller=CALLER) as call:
            await asyncio.sleep(number % 7 * 0.02)
            call.usage, call.outcome, call.status = Usage(number, 1), Outcome.OK, 200

    async def calls(ledger: Ledger) -> None:
        await asyncio.gather(*(call(ledger, number) for number in range(1000)))

    with Ledger(store, clock=time.time) as ledger:
        asyncio.run(calls(ledger))

    written = rows(place, "request_id, outcome, prompt_tokens")
    assert written == [(f"r{number:04}", "ok", number) for number in range(1000)]


def write(home: Path, settings: StoreSettings, count: int) -> int:
    with Store.open(home, settings) as store, Ledger(store, clock=time.time) as ledger:
        for number in range(count):
            settle(ledger, f"{os.getpid()}-{number}")
    return count


def test_processes_share_one_store(place: Place) -> None:
    """Two gateways on one store write side by side, from a start on an empty one."""
    assert at_once(2, write, place.home, place.settings, 400) == [400, 400]
    assert len(rows(place)) == 800
    assert {row[1:] for row in rows(place)} == {(Outcome.OK, 200)}


def test_a_killed_gateway_leaves_rows_that_the_next_start_settles(tmp_path: Path) -> None:
    """kill -9 loses neither settled rows nor the fact that calls were open; a gateway that lives is left alone.

    On one machine, where a process is known to be gone at once; `test_watch.py` has the others.
    """
    place = SqlitePlace(tmp_path)
    killed = start(place, "dead", "3", "2", stdout=subprocess.PIPE)
    alive = start(place, "live", "0", "1", stdout=subprocess.PIPE)
    try:
        for writer in (killed, alive):
            assert writer.stdout is not None
            assert writer.stdout.readline() == "written\n"
        killed.kill()
        killed.wait()
        assert ("dead-open-0", "open", 0) in rows(place)

        with Store.open(tmp_path) as store, Ledger(store, clock=time.time):
            settled = rows(place, "request_id, outcome, estimated_by, finished_at is null")
    finally:
        for writer in (killed, alive):
            writer.kill()
            writer.communicate()

    assert settled[3:] == [
        ("dead-open-0", "gateway_crashed", "gateway_crashed", 1),
        ("dead-open-1", "gateway_crashed", "gateway_crashed", 1),
        ("live-open-0", "open", None, 1),
    ]
    assert {row[1] for row in settled[:3]} == {"ok"}


def test_a_repeated_id_stays_apart_when_its_opening_was_written_first(place: Place, store: Store) -> None:
    """The newcomer's end finds the newcomer's opening, also when each is written by itself."""
    ledger = Ledger(store, clock=time.time)
    settle(ledger, "same", Usage(1, 1))
    ledger.flush()
    with open_call(ledger, "same", caller=CALLER) as call:
        ledger.flush()
        call.usage, call.outcome = Usage(2, 2), Outcome.OK
    ledger.stop()

    assert rows(place, "length(request_id) > 4, prompt_tokens, outcome") == [
        (False, 1, "ok"),
        (True, 2, "ok"),
    ]


def test_rows_wait_while_another_holds_the_database(place: Place, store: Store) -> None:
    """A locked database delays rows and loses none."""
    with Ledger(store, clock=time.time) as ledger:
        with place.writers_wait():
            settle(ledger, "r1")
            assert not ledger.flush()
            assert ledger.pending_rows == 1

        until(lambda: ledger.pending_rows == 0)

    assert rows(place) == [("r1", Outcome.OK, 200)]


def test_a_close_without_database_spills_and_the_next_start_replays_once(place: Place, store: Store) -> None:
    """What the database did not take is in a file, and from there in the database, each row once."""
    ledger = Ledger(store, clock=time.time)
    place.take_away()
    with ledger:
        settle(ledger, "r1")
        settle(ledger, "r2")
    spilled = (store.home / "ledger-spill.jsonl").read_bytes()
    place.bring_back()

    for _ in range(2):
        with Ledger(store, clock=time.time):
            assert not (store.home / "ledger-spill.jsonl").exists()
            assert rows(place) == [("r1", Outcome.OK, 200), ("r2", Outcome.OK, 200)]
        # As if the machine had died between the commit and the file's removal.
        (store.home / "ledger-spill.jsonl").write_bytes(spilled)


async def test_what_goes_with_a_row_is_lost_where_it_is_spilled_and_is_not_billed(place: Place, store: Store) -> None:
    """It will be made again by another gateway, and billed there."""
    ledger = Ledger(store, clock=time.time)
    place.take_away()
    with ledger, open_call(ledger, "line", caller=CALLER) as call:
        call.usage, call.outcome, call.status, call.price_micros = Usage(5, 2), Outcome.OK, 200, 7
        ledger.accompany(call, lambda connection: True)
    place.bring_back()

    with Ledger(store, clock=time.time):
        found = rows(place, "outcome, prompt_tokens, completion_tokens, price_micros")
    assert found == [("gateway_crashed", 0, 0, None)]


async def test_what_was_written_with_a_row_is_not_asked_for_again(place: Place, store: Store) -> None:
    """A transaction that is repeated, because its commit was not confirmed, leaves the row as it is."""
    said = [True, False]
    with Ledger(store, clock=time.time) as ledger:
        with open_call(ledger, "line", caller=CALLER) as call:
            call.usage, call.outcome = Usage(5, 2), Outcome.OK
            ledger.accompany(call, lambda connection: said.pop(0))
        assert ledger.flush()
        ledger.accompany(call, lambda connection: said.pop(0))
        ledger.close(call)
        assert ledger.flush()
        assert (rows(place, "outcome, prompt_tokens"), said) == ([("ok", 5)], [False])


def test_a_long_outage_spills_what_ended_and_replays_it_afterwards(place: Place, store: Store) -> None:
    """Memory is bounded: past `spill_rows` ended calls go to the file, open ones stay, and all arrive in the end."""
    with Ledger(store, clock=time.time, spill_rows=10) as ledger:
        place.take_away()
        with open_call(ledger, "open", caller=CALLER) as call:
            for number in range(30):
                settle(ledger, f"r{number:02}")
            until(lambda: ledger.pending_rows < 10)
            assert "open" not in (store.home / "ledger-spill.jsonl").read_text()

            place.bring_back()
            until(lambda: len(rows(place)) == 31)
            call.outcome = Outcome.OK

    assert {row[1] for row in rows(place)} == {"ok"}
    assert not (store.home / "ledger-spill.jsonl").exists()


async def test_an_opening_is_in_the_database_before_the_first_byte(place: Place, store: Store) -> None:
    """When `kept` returns the row is there for any other process to see, for each of many calls at once."""
    with Ledger(store, clock=time.time) as ledger:
        calls = [CallRecord(request_id=f"r{number:03}", started_at=0.0, caller=CALLER) for number in range(200)]
        for call in calls:
            ledger.open(call)
        await asyncio.gather(*map(ledger.kept, calls))
        written = len(rows(place)) + len(spilled(store))
        for call in calls:
            ledger.close(call)
    assert written >= 200 and len(rows(place)) == 200


def spilled(store: Store) -> list[str]:
    """The lines of the file."""
    path = store.home / "ledger-spill.jsonl"
    return path.read_text().split() if path.exists() else []


async def test_while_the_database_is_away_an_opening_is_in_the_file(place: Place, store: Store) -> None:
    """Calls are answered as before, and a gateway that is killed then leaves their rows all the same."""
    with Ledger(store, clock=time.time) as ledger:
        place.take_away()
        with open_call(ledger, "r1", caller=CALLER) as call:
            await ledger.kept(call)
            assert [json.loads(line)["request_id"] for line in spilled(store)] == ["r1"]
            call.outcome, call.status = Outcome.OK, 200
        place.bring_back()
        until(lambda: rows(place) == [("r1", "ok", 200)] and not spilled(store))


async def test_a_call_goes_on_where_nothing_takes_its_row(place: Place, store: Store) -> None:
    """Below the bound it is answered, its row waits in memory; at the bound no call begins, until one of both is back."""
    (store.home / "ledger-spill.jsonl").mkdir()
    with Ledger(store, clock=time.time, pending_rows_max=2) as ledger:
        place.take_away()
        for name in ("r1", "r2"):
            with open_call(ledger, name, caller=CALLER) as call:
                await ledger.kept(call)
        assert not ledger.takes_calls
        with pytest.raises(StoreUnavailable):
            settle(ledger, "r3")
        (store.home / "ledger-spill.jsonl").rmdir()
        place.bring_back()
        until(lambda: ledger.takes_calls and len(rows(place)) == 2)


def test_rows_that_go_nowhere_are_printed_whole(place: Place, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """At the end each is a line on standard error that the file takes as it is, and the end is a Refusal: exit code 1."""
    blocked = store.home / "ledger-spill.jsonl"
    blocked.mkdir()
    place.take_away()
    with (  # noqa: PT012 The end of the block raises.
        pytest.raises(Refusal, match=r"2 ledger rows .* neither"),
        Ledger(store, clock=time.time) as ledger,
    ):
        settle(ledger, "r1", Usage(7, 3))
        settle(ledger, "r2")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('{"request_id"')]
    place.bring_back()
    blocked.rmdir()
    blocked.write_text("\n".join(lines) + "\n")
    with Ledger(store, clock=time.time):
        assert rows(place, "request_id, outcome, prompt_tokens") == [("r1", "ok", 7), ("r2", "ok", 5)]


FULL_DISK = """
import resource, signal, sys, time
from serving.config import load
from serving.errors import Refusal
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Caller, CallRecord, Outcome, Usage
from serving.gateway.store.store import Store

settings = load()
try:
    with Store.open(settings.home, settings.store) as store, Ledger(store, clock=time.time) as ledger:
        # No file can grow any more, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        for number in range(50):
            call = CallRecord(request_id=f"r{number:02}", started_at=0.0, caller=Caller("t1", "acme", "k1"))
            ledger.open(call)
            call.usage, call.outcome, call.status = Usage(number, 3), Outcome.OK, 200
            ledger.close(call)
except Refusal as refusal:
    sys.exit(str(refusal))
"""


def test_a_full_disk_loses_no_row_in_silence(tmp_path: Path) -> None:
    """The process that cannot write them says each of them and ends with a code that is not 0."""
    place = SqlitePlace(tmp_path)
    place.open().close()
    environment = dict(os.environ) | place.environment()
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK], env=environment, capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    assert ended.returncode == 1 and "50 ledger rows could be written neither" in ended.stderr, ended.stderr
    assert [(line["request_id"], line["prompt_tokens"]) for line in lines] == [(f"r{n:02}", n) for n in range(50)]
    assert rows(place) == []


def test_no_call_begins_when_nothing_takes_its_row(place: Place, store: Store) -> None:
    """With neither database nor file, calls are refused once `pending_rows_max` rows wait; the rows are kept."""
    (store.home / "ledger-spill.jsonl").mkdir()
    ledger = Ledger(store, clock=time.time, pending_rows_max=5)
    place.take_away()
    for number in range(5):
        settle(ledger, f"r{number}")
    ledger.stop()

    with pytest.raises(StoreUnavailable):
        settle(ledger, "one too many")
    place.bring_back()
    (store.home / "ledger-spill.jsonl").rmdir()
    assert ledger.flush()
    assert len(rows(place)) == 5


def test_a_call_that_ends_after_close_is_still_written(place: Place, store: Store) -> None:
    """Closing first and ending later is the wrong order, and no reason to lose a row."""
    ledger = Ledger(store, clock=time.time)
    with open_call(ledger, "late", caller=CALLER) as call:
        with ledger:
            pass
        call.outcome, call.status = Outcome.OK, 200

    assert rows(place) == [("late", Outcome.OK, 200)]


def test_a_call_costs_the_event_loop_microseconds(place: Place, store: Store) -> None:
    """Opening and settling touch memory alone: 1,000 calls take well under a tenth of a second of the loop."""
    ledger = Ledger(store, clock=time.time)
    start_s = time.thread_time()
    for number in range(1000):
        settle(ledger, f"r{number}")
    spent_s = time.thread_time() - start_s
    ledger.stop()

    assert spent_s < 0.1
    assert len(rows(place)) == 1000
