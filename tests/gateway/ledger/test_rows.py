"""Rows: a record as a row, and each row in the database once."""

from __future__ import annotations

import time
from collections import Counter

import msgspec
import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import IntegrityError

from serving.gateway.ledger.ledger import Ledger
from serving.gateway.ledger.rows import CRASHED, OPEN, LedgerRow, close_rows_of, closing_row, opening_row, upsert, write
from serving.gateway.nouns import Caller, Outcome, Usage
from serving.gateway.store.store import Store
from serving.gateway.store.tables import ledger
from tests.gateway.calls import CALLER, open_call, record, rows, settle
from tests.gateway.places import Place


def test_a_repeated_request_id_gets_a_row_of_its_own(place: Place, store: Store) -> None:
    """A client that sends an id again neither hides its new call nor touches the other's row."""
    with Ledger(store, clock=time.time) as first:
        settle(first, "same", Usage(1, 1))
        settle(first, "same", Usage(2, 2), Caller("t2", "other", "k2"))
    with Ledger(store, clock=time.time) as second:
        settle(second, "same", Usage(3, 3))

    written = rows(place, "request_id, tenant_id, prompt_tokens")
    assert ("same", "t1", 1) in written
    assert {row[1:] for row in written} == {("t1", 1), ("t2", 2), ("t1", 3)}
    assert all(str(row[0]).startswith("same~") for row in written if row != ("same", "t1", 1))


@pytest.mark.parametrize("model", ["\ud800", "a\0b", "x" * 100_000])
def test_hostile_text_does_not_stop_the_ledger(place: Place, store: Store, model: str) -> None:
    """Whatever a client names, its row is written, in text any database takes."""
    with (
        Ledger(store, clock=time.time) as ledger,
        open_call(ledger, "r1", caller=CALLER, model=model) as call,
    ):
        call.usage = Usage(-1, 2**80)

    assert rows(place, "length(model) <= 255, prompt_tokens, completion_tokens") == [(True, 0, 2**53)]


def test_an_opening_row_says_who_calls_and_no_more() -> None:
    """Its tokens, its status and its end are not known yet."""
    one = opening_row(record(entry_id="e", opened_at_epoch_s=1.5), "gateway")
    assert (one.outcome, one.status, one.finished_at, one.started_at) == (OPEN, 0, None, 1.5)
    assert (one.tenant_id, one.key_id, one.gateway_id, one.entry_id) == ("t1", "k1", "gateway", "e")


def test_a_closing_row_says_what_the_record_says() -> None:
    """Usage with the rule that estimated it, outcome and status."""
    usage = Usage(5, 4, 3, 2, "last_chunk")
    one = closing_row(record(usage=usage, status=499, outcome=Outcome.DISCONNECTED), "gateway", 2.5)
    tokens = (one.prompt_tokens, one.completion_tokens, one.cached_prompt_tokens, one.reasoning_tokens)
    assert (*tokens, one.estimated_by) == (5, 4, 3, 2, "last_chunk")
    assert (one.outcome, one.status, one.finished_at, one.model, one.replica_id) == (
        "client_disconnected",
        499,
        2.5,
        "m",
        "a",
    )


def test_a_closing_row_says_who_waited_how_long_and_what_it_cost() -> None:
    """An opening says who is behind a call and where it waits; the rest is known at its end alone."""
    call = record(
        caller=msgspec.structs.replace(CALLER, user_ref="u1"),
        base_model="base",
        priority="batch",
        waited_s=0.5,
        is_streamed=True,
        first_byte_at=0.75,
        failures=Counter(broken=2),
        price_micros=2**70,
    )
    opening, end = opening_row(call, "gateway"), closing_row(call, "gateway", 2.5)
    for row in (opening, end):
        assert (row.user_ref, row.base_model, row.priority) == ("u1", "base", "batch")
    assert (opening.waited_s, opening.ttft_s, opening.attempts, opening.price_micros) == (None,) * 4
    assert (end.waited_s, end.ttft_s, end.attempts, end.price_micros) == (0.5, 0.75, 2, 2**53)


def test_a_row_comes_back_as_it_was_written(place: Place, store: Store) -> None:
    """Each column in its own, at its opening and at its end, by each of the two ways to write."""
    caller = msgspec.structs.replace(CALLER, user_ref="u1")
    opened = opening_row(record(entry_id="e", model=None, replica_id=None, caller=caller), "gateway")
    call = record(entry_id="e", priority="batch", waited_s=0.25, is_streamed=True, first_byte_at=0.5, caller=caller)
    call.base_model, call.counted_apart, call.price_micros = "base", "continued", 7
    row = closing_row(call, "gateway", 2.5)
    with store.begin() as connection:
        write(connection, [opened])
        found = connection.execute(select(ledger)).mappings().one()
        assert dict(found) == msgspec.structs.asdict(opened)
        write(connection, [row])
        upsert(connection, [closing_row(record(request_id="s", entry_id="s"), "gateway", 2.5)])
        found = connection.execute(select(ledger).where(ledger.c.request_id == "r")).mappings().one()
    assert dict(found) == msgspec.structs.asdict(row)


def test_the_columns_of_rows_are_the_tables() -> None:
    """Rows are sent whole, in the order of the table."""
    assert LedgerRow.__struct_fields__ == tuple(column.name for column in ledger.c)


def test_a_record_without_caller_or_model_has_a_row() -> None:
    """No column is null that must not be."""
    one = closing_row(record(caller=None, model=None, replica_id=None), "gateway", 2.5)
    assert (one.tenant_id, one.key_id, one.model, one.replica_id) == ("", "", "", None)


def test_an_end_is_written_once(place: Place, store: Store) -> None:
    """A repetition changes nothing, and an opening that comes late does not open it again."""
    opening = opening_row(record(entry_id="e"), "gateway")
    first = closing_row(record(entry_id="e", usage=Usage(1, 1)), "gateway", 2.0)
    again = closing_row(record(entry_id="e", usage=Usage(9, 9)), "gateway", 3.0)
    for group in ([opening], [first], [again, opening]):
        with store.begin() as connection:
            upsert(connection, group)
    assert rows(place, "request_id, outcome, prompt_tokens") == [("r", "ok", 1)]


def test_openings_and_ends_take_one_statement_each(place: Place, store: Store) -> None:
    """However many there are, and without a look at what is there: that is most of what a call costs the database."""
    openings = [opening_row(record(request_id=name, entry_id=name), "gateway") for name in ("a", "b", "c")]
    ends = [closing_row(record(request_id=name, entry_id=name), "gateway", 2.0) for name in ("a", "b")]
    statements: list[str] = []
    with store.begin() as connection:
        event.listen(connection, "before_cursor_execute", lambda _1, _2, sql, *_: statements.append(sql.split()[0]))
        write(connection, openings)
        write(connection, ends)
    assert statements == ["INSERT", "UPDATE"]
    assert rows(place, "request_id, outcome") == [("a", "ok"), ("b", "ok"), ("c", OPEN)]


def test_ends_that_are_not_as_usual_are_written_too(place: Place, store: Store) -> None:
    """One whose opening never came, one under an id that another entry holds, and one that is repeated."""
    owner = closing_row(record(entry_id="first", usage=Usage(1, 1)), "gateway", 2.0)
    with store.begin() as connection:
        write(connection, [owner])
    newcomer = closing_row(record(entry_id="second", usage=Usage(2, 2)), "gateway", 2.0)
    again = closing_row(record(entry_id="first", usage=Usage(9, 9)), "gateway", 3.0)
    with store.begin() as connection:
        write(connection, [newcomer, again])
    assert rows(place, "request_id, prompt_tokens") == [("r", 1), ("r~second", 2)]


def test_an_opening_under_a_taken_id_is_an_error_for_its_group(place: Place, store: Store) -> None:
    """Nothing of the group is written then; all of it is by way of `upsert`."""
    with store.begin() as connection:
        write(connection, [opening_row(record(request_id="taken", entry_id="first"), "gateway")])
    group = [opening_row(record(request_id=name, entry_id="second"), "gateway") for name in ("free", "taken")]
    with pytest.raises(IntegrityError), store.begin() as connection:
        write(connection, group)
    assert rows(place, "request_id") == [("taken",)]


def test_the_open_rows_of_a_dead_gateway_are_closed(place: Place, store: Store) -> None:
    """Its own and open ones alone; should its end come after all, it counts."""
    mine = [opening_row(record(request_id=name, entry_id=name), name[:4]) for name in ("dead-1", "dead-2", "live-1")]
    end = closing_row(record(request_id="dead-2", entry_id="dead-2"), "dead", 2.0)
    with store.begin() as connection:
        upsert(connection, mine)
        assert close_rows_of(connection, "dead") == 2 and close_rows_of(connection, "dead") == 0
        upsert(connection, [end])
    assert rows(place, "request_id, outcome") == [("dead-1", CRASHED), ("dead-2", "ok"), ("live-1", OPEN)]
