"""Endings: what a killed gateway's clients were told is found by its successor, and nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import msgspec

from serving.gateway.ledger.endings import FOLDER, TURN_CALLS, Endings
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.rows import closing_row
from serving.gateway.ledger.watch import own_gateway_id
from serving.gateway.nouns import Usage
from tests.gateway.calls import record
from tests.gateway.places import SqlitePlace

#: A gateway that is killed when its client has all of an answer, before the ledger has its end.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from serving.gateway.ledger.ledger import Ledger
from serving.gateway.nouns import Usage
from serving.gateway.store.store import Store
from tests.gateway.calls import record
with Store.open(Path(sys.argv[1])) as store:
    ledger = Ledger(store, clock=time.time)
    call = record(request_id="told")
    ledger.open(call)
    ledger.flush()
    ledger.foresee(call, Usage(7, 11), 5)
    print("told", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def sizes(home: Path) -> list[int]:
    folder = home / FOLDER
    return sorted(path.stat().st_size for path in folder.iterdir()) if folder.exists() else []


def test_a_killed_gateways_answers_are_billed_as_they_were_told(tmp_path: Path) -> None:
    """Its successor in the same home has the row exact, though another gateway has closed it as crashed."""
    place = SqlitePlace(tmp_path)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as killed:
        assert killed.communicate()[0] == b"told\n" and killed.returncode == -signal.SIGKILL
    place.execute("update ledger set outcome = 'gateway_crashed', estimated_by = 'gateway_crashed'")

    with place.open() as store, Ledger(store, clock=lambda: 1e9):
        pass
    said = "select outcome, prompt_tokens, completion_tokens, estimated_by, price_micros from ledger"
    assert place.execute(said) == [("ok", 7, 11, None, 5)]
    assert sizes(tmp_path) == []


def test_a_calls_real_end_is_the_last_word(tmp_path: Path) -> None:
    """A client that left with all but the last bytes left; what was foreseen is gone with the database's word."""
    place = SqlitePlace(tmp_path)
    with place.open() as store, Ledger(store, clock=lambda: 1e9) as ledger:
        one = record(status=499)
        ledger.open(one)
        ledger.foresee(one, Usage(7, 11), None)
        assert sizes(tmp_path)[-1] > 0
        ledger.close(one)
        ledger.flush()
        assert sum(sizes(tmp_path)) == 0
    assert place.execute("select status, completion_tokens from ledger") == [(499, 0)]
    assert sizes(tmp_path) == []


def test_the_files_are_bounded_by_what_is_under_way(tmp_path: Path) -> None:
    """They take turns: calls that follow one another for ever leave a few hundred lines, though one always runs."""
    endings = Endings(tmp_path, own_gateway_id())
    plain = closing_row(record(), "g", 1.0)
    rows = [msgspec.structs.replace(plain, entry_id=f"{number:016x}") for number in range(5 * TURN_CALLS)]
    endings.note(rows[0])
    for before, after in pairwise(rows):
        endings.note(after)
        endings.tick_off([before.entry_id])
    assert sum(sizes(tmp_path)) < 3 * TURN_CALLS * 1_000
    endings.remove()
    assert sizes(tmp_path) == []


def test_a_living_gateways_file_is_its_own(tmp_path: Path) -> None:
    """Another worker of the same home reads it only once its process is gone; a line that was cut short is left out."""
    living, worker = Endings(tmp_path, own_gateway_id()), Endings(tmp_path, "another-host:1:1")
    living.note(closing_row(record(), own_gateway_id(), 1.0))
    assert list(worker.left()) == []
    host = own_gateway_id().rsplit(":", 2)[0]
    dead = Endings(tmp_path, f"{host}:999999:1")
    dead.note(closing_row(record(request_id="whole"), "dead", 1.0))
    with next((tmp_path / FOLDER).glob("*999999*")).open("ab") as file:
        file.write(b'{"request_id":"cut')
    ((_, rows),) = worker.left()
    assert [it.request_id for it in rows] == ["whole"]


def test_nothing_depends_on_the_file(tmp_path: Path) -> None:
    """A home that takes no file fails no call."""
    (tmp_path / FOLDER).write_text("in the way")
    endings = Endings(tmp_path, own_gateway_id())
    endings.note(closing_row(record(), "g", 1.0))
    endings.tick_off(["e"])
    endings.remove()


def test_what_is_not_a_gateways_is_left_alone(tmp_path: Path) -> None:
    """A stray file or folder keeps the ledger from nothing."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    host = own_gateway_id().rsplit(":", 2)[0]
    (folder / "notes.0").write_text("mine")
    (folder / f"{host}:999999:1.1").mkdir()
    assert list(Endings(tmp_path, own_gateway_id()).left()) == []
