"""Exports: rows and sums of the ledger as lines of CSV or JSON, one at a time, so that a year of them needs no memory."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain

import msgspec

from serving.gateway.ledger import focus
from serving.gateway.ledger.grouping import NONE
from serving.gateway.ledger.prices import in_currency
from serving.gateway.ledger.usage import CallRow, Charge, Sum, Tokens

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
_MOMENTS = ("started_at", "finished_at")
_NUMBERS = tuple(name for name in Tokens.__struct_fields__ if name != "price_micros")


class _Lines:
    """What a csv writer writes to: the line it was given last."""

    def __init__(self) -> None:
        self.last = ""

    def write(self, line: str) -> None:
        self.last = line


def csv_lines(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Lines with their ends; None is an empty cell, and no text is a formula."""
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\n")
    for cells in chain((header,), rows):
        writer.writerow([_inert(cell) for cell in cells])
        yield lines.last


def _inert(cell: object) -> object:
    """Names of models and people are their clients': a spreadsheet computes what begins like this, unless a quote stands before it
    (OWASP, CSV injection).
    """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) and cell != NONE else cell


def sums_csv(by: str, sums: Iterable[Sum], currency: str) -> Iterator[str]:
    """A line a group: what engines said, then what was estimated, each with its price, then what is still open."""
    kinds = [f"{prefix}{name}" for prefix in ("", "estimated_") for name in (*_NUMBERS, "price")]
    header = (by, "label", *kinds, "open_requests", "currency")
    rows = ((it.group, it.label, *_cells(it.exact), *_cells(it.estimated), it.open_requests, currency) for it in sums)
    return csv_lines(header, rows)


def calls_csv(calls: Iterable[CallRow]) -> Iterator[str]:
    """A line a call, with the ledger's columns; moments in ISO 8601."""
    header = CallRow.__struct_fields__
    return csv_lines(header, ([_cell(name, getattr(call, name)) for name in header] for call in calls))


def calls_jsonl(calls: Iterable[CallRow]) -> Iterator[str]:
    """A JSON object a line, with the same names and values."""
    for call in calls:
        said = {name: _cell(name, getattr(call, name)) for name in CallRow.__struct_fields__}
        yield msgspec.json.encode(said).decode() + "\n"


def focus_csv(charges: Iterable[Charge], currency: str, provider: str) -> Iterator[str]:
    """FOCUS's columns, nulls empty."""
    rows = (msgspec.structs.astuple(focus.line(charge, currency, provider)) for charge in charges)
    return csv_lines(focus.HEADER, rows)


def _cells(tokens: Tokens) -> Iterator[object]:
    yield from (getattr(tokens, name) for name in _NUMBERS)
    yield in_currency(tokens.price_micros)


def _cell(name: str, value: object) -> object:
    if name in _MOMENTS and isinstance(value, float):
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value
