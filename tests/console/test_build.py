"""The console's built files: those of its sources, small, and nothing that its security policy forbids."""

from __future__ import annotations

import gzip
import re

import console
from serving.gateway.audit import reading
from serving.gateway.identity.acts import ActKind


def test_the_built_files_are_those_of_the_sources() -> None:
    """Sources that fit their types, built again, give the same bytes: `make console` writes them."""
    assert console.built() == console.there()


def test_the_page_is_small() -> None:
    """All that a browser loads is less than 100 KB as it is sent."""
    assert sum(len(gzip.compress(content)) for content in console.there().values()) < 100_000


def test_the_page_asks_no_other_host() -> None:
    """No file names an address to load from; those that remain are names of XML and of licences."""
    named = {
        found.decode() for content in console.there().values() for found in re.findall(rb"https?://[\w./-]+", content)
    }
    assert named <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml", "http://www.w3.org/1998/Math/MathML"}


def test_the_page_has_nothing_inline() -> None:
    """Scripts and styles are files: the policy lets nothing else run."""
    page = console.INDEX.read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page)


def test_every_kind_of_audit_entry_can_be_looked_for() -> None:
    """The view's groups name each kind once; but those by which a chain tells of itself."""
    listed = (console.SOURCE / "audit.tsx").read_text().split("KINDS", 1)[1].split("};", 1)[0]
    assert sorted(re.findall(r'"([a-z_]+(?:\.[a-z_]+)?)"(?!\s*:)', listed)) == sorted({*ActKind, *reading.GATHERED})
