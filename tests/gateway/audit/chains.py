"""Chains as a few processes leave them, made in memory."""

from __future__ import annotations

from collections.abc import Sequence

from serving.gateway.audit import checkpoints
from serving.gateway.audit.chain import GENESIS, Entry, Kind, link
from serving.gateway.audit.checkpoints import Checkpoint, Signer
from serving.gateway.audit.verification import Report, verify

SIGNER = Signer(bytes(range(32)))
OTHER_SIGNER = Signer(bytes(32))
#: Entries that are statements are numbered apart from it.
NOON_US = 1_800_000_000 * 10**6


class Written:
    """A chain on its way."""

    def __init__(self, writer: str = "gateway:a", signer: Signer = SIGNER) -> None:
        self.writer = writer
        self.signer = signer
        self.entries: list[Entry] = []
        self.add(Kind.BEGIN)

    def add(self, kind: str, body: str = "{}") -> Entry:
        previous = self.entries[-1].digest if self.entries else GENESIS
        number = len(self.entries) + 1
        entry = link(previous, self.writer, number, NOON_US + number * 10**6, kind, body)
        self.entries.append(entry)
        return entry

    def sign(self, entry: Entry | None = None) -> Checkpoint:
        """A statement of its last entry, or of another chain's, kept in this one."""
        statement = self.signer.sign(entry or self.entries[-1], NOON_US)
        self.add(Kind.CHECKPOINT, checkpoints.written(statement))
        return statement


def verified(entries: Sequence[Entry], given: Sequence[Checkpoint] = (), signer: Signer = SIGNER) -> Report:
    """As they come from the table: by writer and number."""
    ordered = sorted(entries, key=lambda it: (it.writer, it.number))
    statements = [entry for entry in ordered if entry.kind == Kind.CHECKPOINT]
    return verify(ordered, statements, given, [signer.public_key])
