"""Spill: the ledger's rows in a file of JSON lines, for the time the database is away."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from serving.gateway.ledger.rows import LedgerRow
from serving.gateway.store.store import locked

FILE_NAME = "ledger-spill.jsonl"

log = logging.getLogger(__name__)


class Spill:
    """The spill file of one home; every process that uses the home shares it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.path = home / FILE_NAME

    def append(self, rows: Sequence[LedgerRow]) -> None:
        """Add rows; they are on disk when this returns. Raises OSError."""
        # A line break first: the last line may have been cut short by a machine that died.
        lines = b"".join(b"\n" + msgspec.json.encode(row) for row in rows)
        with locked(self._home):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())

    @contextmanager
    def drained(self) -> Iterator[Iterator[LedgerRow]]:
        """The rows in the file, which is removed when the block ends well and nothing was added meanwhile.

        Rows can be added while the block runs: the database it writes to may take seconds to fail.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            yield iter(())
            return
        with file:
            with locked(self._home):
                # No line is half written while the lock is held.
                size = os.fstat(file.fileno()).st_size
            yield _decoded(_lines(file, size))
            with locked(self._home):
                self._remove_if_unchanged(file.fileno(), size)

    def _remove_if_unchanged(self, descriptor: int, size: int) -> None:
        """Rows that were added are for the next time, and those before them are then written once more, which changes nothing."""
        read = os.fstat(descriptor)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(read, self.path.stat()) and read.st_size == size:
                self.path.unlink()


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Its lines up to `size` bytes."""
    while file.tell() < size and (line := file.readline(size - file.tell())):
        yield line


def _decoded(lines: Iterable[bytes]) -> Iterator[LedgerRow]:
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            yield msgspec.json.decode(line, type=LedgerRow)
        except msgspec.DecodeError:
            # The machine died while this line was written.
            log.error("line %d of %s is not a ledger row and is left out", number, FILE_NAME)
