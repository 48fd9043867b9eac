"""Decisions: each has an id of its own and four parts, and every id that is cited anywhere exists."""

from __future__ import annotations

import re
from itertools import groupby

import pytest

from tests.repository import ROOT, files

FOLDER = ROOT / "serving" / "decisions"
PAGES = {path: path.read_text() for path in FOLDER.glob("*.md") if path.stem not in ("README", "upstream")}
HEADING = re.compile(r"^### ([A-Z][A-Z0-9]*)-(\d+): \S.*$", re.M)
PREFIXES = {path: {prefix for prefix, _ in HEADING.findall(text)} for path, text in PAGES.items()}
CITATION = re.compile(rf"\b(?:{'|'.join(sorted(set().union(*PREFIXES.values())))})-\d+\b")
#: Suffixes of files that people write; locks, reports and images hold other people's names.
WRITTEN = {".md", ".py", ".yaml", ".toml", ".tpl", ".json", ""}


def entries() -> list[tuple[str, str]]:
    """(id, text below its heading) of every decision."""
    found = []
    for text in PAGES.values():
        parts = HEADING.split(text)[1:]
        found += [(f"{parts[n]}-{parts[n + 1]}", parts[n + 2]) for n in range(0, len(parts), 3)]
    return found


def test_ids_are_unique_and_numbered_by_page() -> None:
    """A page has one prefix of its own and gives each of its decisions a number of its own, from 1, in order."""
    assert all(len(prefixes) == 1 for prefixes in PREFIXES.values())
    assert len(set().union(*PREFIXES.values())) == len(PAGES)
    numbered = [(name.split("-")[0], int(name.split("-")[1])) for name, _ in entries()]
    for _, group in groupby(numbered, key=lambda it: it[0]):
        numbers = [number for _, number in group]
        assert sorted(set(numbers)) == numbers and min(numbers) == 1


@pytest.mark.parametrize(("name", "text"), entries(), ids=lambda it: it if "-" in it[:6] else "")
def test_each_has_four_parts(name: str, text: str) -> None:
    """Context, choice, cost, and when to reconsider, in this order and none of them empty."""
    assert re.findall(r"^\*\*([\w ]+)\.\*\* \S", text, re.M) == ["Context", "Choice", "Cost", "Revisit when"], name


def test_every_cited_id_exists() -> None:
    """A comment or a page that cites a decision leads to one."""
    known = {name for name, _ in entries()}
    cited = {
        (name, str(path.relative_to(ROOT)))
        for path in files()
        if path.suffix in WRITTEN and "locks" not in path.parts
        for name in CITATION.findall(path.read_text(errors="replace"))
    }
    assert {name for name, _ in cited} >= known, "the pages themselves were searched"
    assert sorted((name, place) for name, place in cited if name not in known) == []


def test_each_fault_of_others_is_ready_to_be_told() -> None:
    """What is seen, what is right, where it is and what we do until then, numbered from 1."""
    _, *faults = re.split(r"^### UP-(\d+): \S.*$", (FOLDER / "upstream.md").read_text(), flags=re.M)
    assert faults[::2] == [str(number) for number in range(1, len(faults) // 2 + 1)]
    for text in faults[1::2]:
        assert re.findall(r"^\*\*([\w ]+)\.\*\* \S", text, re.M) == ["Seen", "Right", "Where", "Here"], text


def test_the_index_names_every_page() -> None:
    """serving/decisions/README.md has a line for each page, with its prefix."""
    index = (ROOT / "serving" / "decisions" / "README.md").read_text()
    lines = re.findall(r"^\| \[([\w-]+\.md)\]\(\1\) \| (\w+) \|", index, re.M)
    assert dict(lines) == {path.name: prefix for path, (prefix,) in PREFIXES.items()}
