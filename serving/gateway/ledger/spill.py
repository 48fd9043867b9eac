"""Spill: the ledger's rows in a file of JSON lines, for the time the database is away."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from serving.gateway.ledger.rows import LedgerRow
from serving.gateway.store.store import locked

FILE_NAME = "ledger-spill.jsonl"

log = logging.getLogger(__name__)


class Spill:
    """The spill file of one home; every process that uses the home shares it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._path = home / FILE_NAME

    def append(self, rows: Sequence[LedgerRow]) -> None:
        """Add rows; they are on disk when this returns. Raises OSError."""
        # A line break first: the last line may have been cut short by a machine that died.
        lines = b"".join(b"\n" + msgspec.json.encode(row) for row in rows)
        with locked(self._home):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())

    @contextmanager
    def drained(self) -> Iterator[Iterator[LedgerRow]]:
        """The rows in the file, which is removed when the block ends well."""
        if not self._path.exists():
            yield iter(())
            return
        with locked(self._home), self._path.open("ab+") as file:
            file.seek(0)
            yield _decoded(file)
            self._path.unlink(missing_ok=True)


def _decoded(lines: Iterable[bytes]) -> Iterator[LedgerRow]:
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            yield msgspec.json.decode(line, type=LedgerRow)
        except msgspec.DecodeError:
            # The machine died while this line was written.
            log.error("line %d of %s is not a ledger row and is left out", number, FILE_NAME)
