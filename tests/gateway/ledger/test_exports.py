"""Exports: lines, one at a time, that other programs read back as they were."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Iterator

import pytest
from sqlalchemy import insert

from serving.gateway.ledger.exports import calls_csv, calls_jsonl, csv_lines, focus_csv, sums_csv
from serving.gateway.ledger.rows import closing_row
from serving.gateway.ledger.usage import CallRow, Charge, Sum, Tokens, each_call
from serving.gateway.store.store import Store
from serving.gateway.store.tables import ledger
from tests.gateway.calls import USAGE, record

CALLS = 5_000


def read(lines: Iterator[str]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO("".join(lines))))


def test_a_cell_may_hold_anything() -> None:
    """Commas, quotes and line breaks come back; None is empty."""
    odd = 'a,"b"\nc'
    assert "".join(csv_lines(("x", "y"), [(odd, None), (1, "")])) == 'x,y\n"a,""b""\nc",\n1,\n'
    assert read(csv_lines(("x", "y"), [(odd, None)])) == [{"x": odd, "y": ""}]


@pytest.mark.parametrize("begun", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_a_formula(begun: str) -> None:
    """A client may call itself, or a model, what a spreadsheet would compute; numbers and the sign for nothing stay as they are."""
    cells = (f'{begun}HYPERLINK("http://x")', -1, -1.5, "-", "m-1")
    assert list(csv.reader(csv_lines("abcde", [cells])))[1] == [f"'{cells[0]}", "-1", "-1.5", "-", "m-1"]


def test_exact_and_estimated_sums_have_columns_of_their_own() -> None:
    """And money is in the currency, not in millionths of it."""
    one = Sum("u1", Tokens(1, 2, 3, 4, 5, 1_500_000), Tokens(6, 7, 8, 9, 10, 1), 2, "ann")
    (found,) = read(sums_csv("user", [one], "EUR"))
    assert (found["user"], found["label"], found["prompt_tokens"], found["price"]) == ("u1", "ann", "2", "1.5")
    assert (found["estimated_prompt_tokens"], found["estimated_price"]) == ("7", "0.000001")
    assert (found["open_requests"], found["currency"]) == ("2", "EUR")


def test_calls_are_written_with_the_ledgers_columns(store: Store) -> None:
    """The same in CSV and in JSON lines."""
    row = closing_row(record(entry_id="e", usage=USAGE, opened_at_epoch_s=1_795_348_800.25), "gateway", 1_795_348_801.0)
    with store.begin() as connection:
        connection.execute(insert(ledger), [{name: getattr(row, name) for name in row.__struct_fields__}])
    (cells,) = read(calls_csv(each_call(store)))
    (said,) = [json.loads(line) for line in calls_jsonl(each_call(store))]
    assert tuple(cells) == tuple(said) == CallRow.__struct_fields__
    assert cells == {name: "" if value is None else str(value) for name, value in said.items()}
    assert said["started_at"] == "2026-11-22T12:00:00.250Z" and said["prompt_tokens"] == USAGE.prompt_tokens


def test_a_bill_is_lines_of_focus() -> None:
    """Nulls are empty cells."""
    charge = Charge("2026-11-22", "t1", "acme", "k1", "m", None, None, True, 1, 0, 2, 3, 0, 0, 7)
    (found,) = read(focus_csv([charge], "USD", "Us"))
    assert (found["BilledCost"], found["ChargeClass"], found["x_BaseModel"]) == ("0.000007", "", "")


def test_memory_does_not_grow_with_the_export(store: Store) -> None:
    """Rows pass through: a fraction of them is in memory at a time."""
    row = closing_row(record(entry_id="e"), "gateway", 2.0)
    plain = {name: getattr(row, name) for name in row.__struct_fields__}
    with store.begin() as connection:
        connection.execute(insert(ledger), [plain | {"request_id": f"r{number:05}"} for number in range(CALLS)])
    tracemalloc.start()
    try:
        whole = list(each_call(store))
        size, _ = tracemalloc.get_traced_memory()
        assert len(whole) == CALLS
        whole.clear()
        tracemalloc.reset_peak()
        for _ in calls_csv(each_call(store)):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 2
