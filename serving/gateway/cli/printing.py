"""Printing: what the operator's commands share: their settings, how they read moments, how they print."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from serving.config import Settings, load
from serving.errors import Refusal

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]


def settings_of(context: typer.Context) -> Settings:
    """The settings the root command has read, or the defaults and environment when it left none."""
    return context.find_object(Settings) or load()


def moment(text: str) -> float:
    try:
        said = datetime.fromisoformat(text)
        return (said if said.tzinfo else said.replace(tzinfo=UTC)).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        raise Refusal(f"'{text}' is not an ISO date or time, such as 2026-11-22 or 2026-11-22T10:00:00Z.") from None


def print_json(items: Sequence[msgspec.Struct]) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(items)).decode())


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns: numbers to the right, everything else to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    is_number = [bool(rows) and all(row[at].replace(".", "", 1).isdigit() for row in rows) for at in range(len(header))]
    for row in (header, *rows):
        cells = zip(row, widths, is_number, strict=True)
        line = "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells)
        typer.echo(line.rstrip())


def date(epoch_s: float | None) -> str:
    return "-" if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M")
