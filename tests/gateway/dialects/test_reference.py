"""Reference: the page of all fields, made from the tables in force."""

from __future__ import annotations

from serving.gateway.dialects import DIALECTS, reference
from serving.gateway.dialects.fields import Disposition


def test_the_table_renders_as_markdown() -> None:
    """Every route and every field is a line of the page that the README shows."""
    page = reference.markdown()
    assert all(f"### `{path}`" in page for path in DIALECTS)
    assert page.count("\n| `") == sum(len(dialect.fields) for dialect in DIALECTS.values())


def test_what_works_stands_before_what_does_not() -> None:
    """In each table honoured, ignored, refused; by name within; required ones say so."""
    for table in reference.markdown().split("### ")[1:]:
        rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
        order = list(Disposition)
        found = [(order.index(Disposition(row[1])), row[0].partition("`")[2].partition("`")[0]) for row in rows]
        assert found == sorted(found)
    assert "| `messages` (required) | honoured |" in reference.markdown()


def test_no_cell_breaks_the_table() -> None:
    """A note with a bar or a line break would."""
    notes = [field.note for dialect in DIALECTS.values() for field in dialect.fields.values()]
    assert not [note for note in notes if "|" in note or "\n" in note]
