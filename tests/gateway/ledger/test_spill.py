"""Spill: rows outlive an outage in a file, each line by itself."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import msgspec
import pytest

from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.rows import LedgerRow, closing_row
from serving.gateway.ledger.spill import FILE_NAME, Spill
from serving.gateway.nouns import Outcome
from serving.gateway.store.store import Store
from tests.gateway.calls import record, rows, settle
from tests.gateway.places import Place

#: Of a row of version 0.1.
_FIRST_FIELDS = LedgerRow.__struct_fields__[: LedgerRow.__struct_fields__.index("user_ref")]


def test_a_line_that_a_dying_machine_cut_short_costs_that_line_alone(place: Place, store: Store) -> None:
    """A torn line is left out, and what is spilled after it stays readable."""
    spill = store.home / "ledger-spill.jsonl"
    with Ledger(store, clock=time.time) as ledger:
        spill.write_bytes(b'{"request_id": "torn", "outc')
        place.take_away()
        settle(ledger, "r1")
    place.bring_back()

    with Ledger(store, clock=time.time):
        pass
    assert rows(place) == [("r1", Outcome.OK, 200)]


def row(request_id: str) -> LedgerRow:
    return closing_row(record(request_id=request_id), "gateway", 2.0)


def drained(spill: Spill) -> list[LedgerRow]:
    with spill.drained() as found:
        return list(found)


def test_rows_come_back_in_order_and_once(tmp_path: Path) -> None:
    """Appended in several pieces; when they have been taken the file is gone."""
    spill = Spill(tmp_path)
    spill.append([row("1"), row("2")])
    spill.append([row("3")])
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert drained(spill) == [row("1"), row("2"), row("3")]
    assert drained(spill) == [] and not (tmp_path / FILE_NAME).exists()


def test_a_file_whose_rows_were_not_taken_stays(tmp_path: Path) -> None:
    """The database may fail again while it takes them."""
    spill = Spill(tmp_path)
    spill.append([row("1")])
    with pytest.raises(ZeroDivisionError), spill.drained():
        raise ZeroDivisionError
    assert drained(spill) == [row("1")]


def test_a_torn_line_is_reported_without_its_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By its number; the rows around it are read."""
    spill = Spill(tmp_path)
    spill.append([row("1")])
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'\n{"request_id": "torn')
    spill.append([row("2")])
    assert drained(spill) == [row("1"), row("2")]
    assert "line 3 of ledger-spill.jsonl is not a ledger row" in caplog.text and "torn" not in caplog.text


def test_rows_of_the_version_before_are_read(tmp_path: Path) -> None:
    """It knew nothing of users and prices; and rows of a version after this one may say more."""
    spill, new = Spill(tmp_path), row("1")
    old = {name: value for name, value in msgspec.structs.asdict(new).items() if name in _FIRST_FIELDS}
    (tmp_path / FILE_NAME).write_bytes(msgspec.json.encode(old) + b"\n" + msgspec.json.encode(old | {"later": 1}))
    assert drained(spill) == [msgspec.structs.replace(new, waited_s=None, attempts=None)] * 2


def test_rows_that_come_while_others_are_taken_stay(tmp_path: Path) -> None:
    """The file is not locked meanwhile, because a database takes its time to fail; nothing that was added is removed."""
    spill = Spill(tmp_path)
    spill.append([row("1")])
    with spill.drained() as found:
        spill.append([row("2")])
        assert list(found) == [row("1")]
    assert drained(spill) == [row("1"), row("2")]
    assert not spill.path.exists()


def test_another_process_may_take_the_same_rows(tmp_path: Path) -> None:
    """Both write them, which changes nothing the second time; a file that came in its place is left alone."""
    spill = Spill(tmp_path)
    spill.append([row("1")])
    with spill.drained() as found:
        assert drained(spill) == [row("1")]
        spill.append([row("2")])
        assert list(found) == [row("1")]
    assert drained(spill) == [row("2")]
