"""Reasoning: what a model thought before it called a tool, kept until the tool's result comes back.

Many clients send a call and its result back without the thoughts between; the model then no longer knows why it asked. Each
gateway keeps them for some minutes, by the ids of the calls, per tenant and in bounded memory; clients may carry them too,
sealed (RLY-10, RLY-11).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Protocol

import msgspec

from serving.gateway.answers.seal import Seal

#: Seconds since a reasoning was last wanted: a tool may run for minutes, and a person may have to allow it first.
KEPT_S = 30 * 60.0
#: Bytes of all that one gateway keeps, ids included, and of one text.
KEPT_BYTES_MAX = 64 * 1024 * 1024
TEXT_BYTES_MAX = 128 * 1024
#: Bytes that an entry takes beside its text: id, expiry and the places in two mappings.
ENTRY_BYTES = 512
#: Ids that an engine draws at random. Some number their calls instead (`functions.f:0`): two conversations would meet.
_RANDOM_ID = re.compile(r".{0,64}[0-9a-f]{16,64}")


class Keeper(Protocol):
    """The reasoning of one tenant's calls."""

    def keep(self, text: str, *ids: str) -> None:
        """Remember what came before the calls or items of these ids."""
        ...

    def recall(self, call_id: str) -> str | None:
        """What was thought before the call, or in the item, of this id."""
        ...

    def seal(self, text: str) -> str: ...

    def open(self, sealed: str) -> str | None:
        """The text of what `seal` gave to the same tenant; None for anything else."""
        ...


class Forgetful:
    """Keeps nothing."""

    def keep(self, text: str, *ids: str) -> None:
        return None

    def recall(self, call_id: str) -> str | None:
        return None

    def seal(self, text: str) -> str:
        return ""

    def open(self, sealed: str) -> str | None:
        return None


FORGETFUL = Forgetful()


class _Entry(msgspec.Struct):
    text: str
    wanted_at: float
    size: int


class _Kept:
    """One tenant's, the one wanted longest ago first."""

    def __init__(self) -> None:
        self.entries: OrderedDict[str, _Entry] = OrderedDict()
        self.size = 0

    def drop_oldest(self) -> int:
        _, entry = self.entries.popitem(last=False)
        self.size -= entry.size
        return entry.size


class Reasoning:
    """What one gateway process keeps, of all tenants."""

    def __init__(self, seal: Seal, clock: Callable[[], float], *, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self.seal = seal
        self._clock = clock
        self._bytes_max = bytes_max
        self._tenants: dict[str, _Kept] = {}
        self._size = 0
        # Long bodies are read in a thread. It is held for microseconds.
        self._lock = Lock()

    def of(self, tenant_id: str) -> Keeper:
        return _Tenants(self, tenant_id)

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._size

    def put(self, tenant_id: str, text: str, ids: tuple[str, ...]) -> None:
        """Keep one text under each of these ids; what was wanted longest ago makes room."""
        size = len(text.encode())
        if not text or size > TEXT_BYTES_MAX:
            return
        with self._lock:
            self._put(tenant_id, text, size, ids)

    def _put(self, tenant_id: str, text: str, size: int, ids: tuple[str, ...]) -> None:
        for call_id in filter(_RANDOM_ID.fullmatch, ids):
            kept = self._tenants.setdefault(tenant_id, _Kept())
            self._drop(kept, call_id)
            kept.entries[call_id] = _Entry(text, self._clock(), size + ENTRY_BYTES)
            kept.size += size + ENTRY_BYTES
            self._size += size + ENTRY_BYTES
        self._make_room(tenant_id)

    def get(self, tenant_id: str, call_id: str) -> str | None:
        """The text under an id of this tenant, which is then kept on."""
        with self._lock:
            return self._get(tenant_id, call_id)

    def _get(self, tenant_id: str, call_id: str) -> str | None:
        kept = self._tenants.get(tenant_id)
        entry = kept.entries.get(call_id) if kept else None
        if kept is None or entry is None or self._is_over(entry):
            return None
        entry.wanted_at = self._clock()
        kept.entries.move_to_end(call_id)
        return entry.text

    def _is_over(self, entry: _Entry) -> bool:
        return self._clock() - entry.wanted_at >= KEPT_S

    def _drop(self, kept: _Kept, call_id: str) -> None:
        if entry := kept.entries.pop(call_id, None):
            kept.size -= entry.size
            self._size -= entry.size

    def _make_room(self, tenant_id: str) -> None:
        """Drop what is over of this tenant, and past the bound the oldest of the tenant that keeps most."""
        kept = self._tenants.get(tenant_id)
        while kept and kept.entries and self._is_over(next(iter(kept.entries.values()))):
            self._size -= kept.drop_oldest()
        while self._size > self._bytes_max:
            largest = max(self._tenants.values(), key=lambda it: it.size)
            self._size -= largest.drop_oldest()
        if kept and not kept.entries:
            del self._tenants[tenant_id]


class _Tenants:
    """A Keeper that sees one tenant's alone."""

    def __init__(self, reasoning: Reasoning, tenant_id: str) -> None:
        self._reasoning = reasoning
        self._tenant_id = tenant_id

    def keep(self, text: str, *ids: str) -> None:
        self._reasoning.put(self._tenant_id, text, ids)

    def recall(self, call_id: str) -> str | None:
        return self._reasoning.get(self._tenant_id, call_id)

    def seal(self, text: str) -> str:
        return self._reasoning.seal.seal(self._tenant_id, text)

    def open(self, sealed: str) -> str | None:
        return self._reasoning.seal.open(self._tenant_id, sealed)
