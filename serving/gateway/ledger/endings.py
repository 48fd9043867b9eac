"""Endings: what calls have cost, in a file beside the database, before their last bytes go out: a killed gateway's successor finds there
what its clients were told, and the ledger has it exactly (TEN-41).

A line is one write into the page cache, which outlives the process: nothing is synced, and the event loop does not wait for a disk.
Two files take turns, so that each is emptied once all of its calls are in the database.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec

from serving.gateway.ledger.rows import LedgerRow
from serving.gateway.ledger.watch import has_died

FOLDER = "ledger-endings"
#: Calls after which the other file takes its turn; about 0.6 KB each.
TURN_CALLS = 256

#: A gateway's id: host, pid, start.
_ID = re.compile(r".+:\d+:[^:]*")

log = logging.getLogger(__name__)


class _File:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor: int | None = None
        self.lines = 0
        #: Calls whose ends are not in the database yet.
        self.waiting: set[str] = set()

    def write(self, line: bytes) -> None:
        if self.descriptor is None:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(self.descriptor, line)
        self.lines += 1

    def empty(self) -> None:
        if self.descriptor is not None:
            os.ftruncate(self.descriptor, 0)
        self.lines = 0

    def remove(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        self.path.unlink(missing_ok=True)


class Endings:
    """Those of one gateway, and of dead ones that used the same home. Safe for several threads."""

    def __init__(self, home: Path, gateway_id: str) -> None:
        self._folder = home / FOLDER
        self._own = quote(gateway_id, safe="")
        self._files = [_File(self._folder / f"{self._own}.{number}") for number in range(2)]
        #: Held for no longer than one write into the page cache: the event loop waits for it.
        self._lock = threading.Lock()
        #: For the file that is not written to, which is emptied without the above: that may wait for a disk.
        self._emptying = threading.Lock()
        self._is_failing = False

    def note(self, row: LedgerRow) -> None:
        """A call's last bytes go out next. Where the file cannot be written, its row is as that of any call of a killed gateway."""
        line = msgspec.json.encode(row) + b"\n"
        with self._lock:
            current = self._files[0]
            try:
                current.write(line)
            except OSError as error:
                if not self._is_failing:
                    log.warning("ends of calls cannot be written beside the database: %s", error.strerror)
                self._is_failing = True
            else:
                self._is_failing = False
                current.waiting.add(row.entry_id)

    def tick_off(self, entry_ids: Iterable[str]) -> None:
        """These ends are in the database."""
        with self._emptying:
            with self._lock:
                for file in self._files:
                    file.waiting.difference_update(entry_ids)
                current, other = self._files
                if not other.lines and current.lines and (not current.waiting or current.lines >= TURN_CALLS):
                    self._files.reverse()
                    current, other = other, current
                is_done = not other.waiting and other.lines > 0
            if is_done:
                # What cannot be emptied now can be the next time: it is written once more at most, which changes nothing.
                with contextlib.suppress(OSError):
                    other.empty()

    def remove(self) -> None:
        """This gateway has written everything."""
        with self._emptying, self._lock, contextlib.suppress(OSError):
            for file in self._files:
                file.remove()

    def left(self) -> Iterator[tuple[Path, list[LedgerRow]]]:
        """Files of gateways that died here, each with its rows. One that cannot be read keeps the ledger from nothing."""
        for path in sorted(self._folder.glob("*.[01]")):
            name = path.name.rpartition(".")[0]
            if name == self._own or not _ID.fullmatch(unquote(name)) or not has_died(unquote(name)):
                continue
            try:
                rows = list(_rows(path))
            except OSError as error:
                log.warning("what calls of a killed gateway have cost cannot be read: %s", error.strerror)
            else:
                yield path, rows


def _rows(path: Path) -> Iterator[LedgerRow]:
    for line in path.read_bytes().splitlines():
        # The last one may have been cut short.
        with contextlib.suppress(msgspec.DecodeError):
            yield msgspec.json.decode(line, type=LedgerRow)
