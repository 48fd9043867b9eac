"""Chain: a digest stands for an entry and all before it."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway.audit.chain import GENESIS, Entry, digest, follows, framed, link

_ENTRIES = st.tuples(st.text(), st.integers(1, 2**53), st.integers(0, 2**53), st.text(), st.text())


def test_a_digest_is_what_the_module_says() -> None:
    """Computed by hand from its description, so that another program can do the same."""

    def field(content: bytes) -> bytes:
        return len(content).to_bytes(8, "big") + content

    fields = [
        GENESIS,
        b"gateway:a",
        (1).to_bytes(8, "big"),
        (5).to_bytes(8, "big"),
        b"begin",
        b"{}",
        b"gpt-oss-serving audit entry 1",
    ]
    by_hand = hashlib.sha256(b"".join(map(field, fields))).digest()
    assert link(GENESIS, "gateway:a", 1, 5, "begin", "{}") == Entry("gateway:a", 1, 5, "begin", "{}", by_hand)


@settings(deadline=None)
@given(_ENTRIES, _ENTRIES)
def test_no_two_entries_have_one_digest(
    one: tuple[str, int, int, str, str], other: tuple[str, int, int, str, str]
) -> None:
    """What moves from one field into the next is another entry."""
    assert (digest(GENESIS, *one) == digest(GENESIS, *other)) == (one == other)


@settings(deadline=None)
@given(st.lists(st.binary(), max_size=4), st.lists(st.binary(), max_size=4))
def test_framed_fields_are_unambiguous(one: list[bytes], other: list[bytes]) -> None:
    """Other fields, other bytes."""
    assert (framed(*one) == framed(*other)) == (one == other)


def test_an_entry_follows_one_digest_alone() -> None:
    """That of the entry before it, not its own."""
    entry = link(GENESIS, "w", 1, 0, "begin", "{}")
    assert follows(entry, GENESIS)
    assert not follows(entry, entry.digest)
