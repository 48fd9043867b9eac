"""Reference: every request field of every API as a page, made from the tables in force."""

from __future__ import annotations

from serving.gateway.dialects import DIALECTS
from serving.gateway.dialects.fields import Disposition


def markdown() -> str:
    """One table for each path."""
    parts = []
    order = list(Disposition)
    for path, dialect in DIALECTS.items():
        parts.append(f"### `{path}`\n\n| field | | how, or why not |\n|---|---|---|")
        rows = sorted(dialect.fields.items(), key=lambda row: (order.index(row[1].disposition), row[0]))
        for name, field in rows:
            required = " (required)" if field.is_required else ""
            parts.append(f"| `{name}`{required} | {field.disposition} | {field.note} |")
        parts.append("")
    return "\n".join(parts)
