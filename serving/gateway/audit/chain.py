"""Chain: how one entry follows another.

An entry's digest is SHA-256 over seven fields, each preceded by its length in bytes as 8 bytes, big-endian:

    1  the digest of the entry before it, 32 bytes; for the first entry 32 zero bytes
    2  the writer, in UTF-8
    3  the number, 8 bytes, big-endian: 1 for the first entry
    4  when it was written, in microseconds since the epoch, 8 bytes, big-endian
    5  the kind, in UTF-8
    6  the body, in UTF-8: JSON, as the bytes that were written
    7  a fixed word, `gpt-oss-serving audit entry 1`

The lengths make it unambiguous: no two different entries are the same bytes.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec

#: What stands for the digest before the first entry.
GENESIS = bytes(32)

_FORMAT = b"gpt-oss-serving audit entry 1"
_INTEGER_BYTES = 8


class Kind(StrEnum):
    """Kinds of entries that the audit itself writes; an act has its own."""

    BEGIN = "begin"
    #: The process stopped in order; a chain without it belongs to one that runs, was killed, or was cut.
    END = "end"
    CHECKPOINT = "checkpoint"
    #: Some hundred calls of models.
    CALLS = "calls"
    SIGN_INS = "sign_ins"
    REFUSED = "sign_ins.refused"


class Entry(msgspec.Struct, frozen=True):
    """One entry of one writer's chain."""

    writer: str
    number: int
    #: Microseconds since the epoch, by the writer's clock.
    written_at_us: int
    kind: str
    body: str
    digest: bytes


def link(previous: bytes, writer: str, number: int, written_at_us: int, kind: str, body: str) -> Entry:
    """The entry that follows the one with the digest `previous`."""
    return Entry(writer, number, written_at_us, kind, body, digest(previous, writer, number, written_at_us, kind, body))


def follows(entry: Entry, previous: bytes) -> bool:
    """Is its digest that of its fields behind `previous`?"""
    return entry.digest == digest(previous, entry.writer, entry.number, entry.written_at_us, entry.kind, entry.body)


def digest(previous: bytes, writer: str, number: int, written_at_us: int, kind: str, body: str) -> bytes:
    fields = (previous, writer.encode(), integer(number), integer(written_at_us), kind.encode(), body.encode(), _FORMAT)
    return hashlib.sha256(framed(*fields)).digest()


def framed(*fields: bytes) -> bytes:
    """The fields, each behind its length."""
    return b"".join(integer(len(field)) + field for field in fields)


def integer(number: int) -> bytes:
    return number.to_bytes(_INTEGER_BYTES, "big")
