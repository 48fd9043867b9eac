"""Gate: the bounds on open requests and on what they hold, asked before a body is read and while it is."""

from __future__ import annotations

from serving.errors import GatewayFull
from serving.gateway.admission.memory import Memory, Share
from serving.gateway.nouns import CallRecord, Decision


class Gate:
    """Counts the calls that are open now."""

    def __init__(self, open_requests_max: int, memory: Memory) -> None:
        self._open_requests_max = open_requests_max
        self._memory = memory
        self._open_requests = 0

    def entered(self, record: CallRecord) -> Entry:
        """One call is open while inside, with its share of the memory; raises GatewayFull when too many are, or hold too much."""
        return Entry(self, self._memory, record)

    def open(self) -> None:
        """One more; raises GatewayFull when too many are open."""
        if self._open_requests >= self._open_requests_max:
            raise GatewayFull("Too many requests are open; please try again.", retry_after_s=1)
        self._open_requests += 1

    def close(self) -> None:
        self._open_requests -= 1


class Entry:
    """One open call, inside `with`."""

    def __init__(self, gate: Gate, memory: Memory, record: CallRecord) -> None:
        self._gate = gate
        self._share = Share(memory)
        self._record = record

    def __enter__(self) -> Share:
        try:
            self._gate.open()
        except GatewayFull:
            self._record.decision = Decision.REFUSED_FULL
            raise
        try:
            return self._share.__enter__()
        except GatewayFull as full:
            self.__exit__(type(full))
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._share.__exit__()
        self._gate.close()
        if kind is not None and issubclass(kind, GatewayFull) and self._record.decision is None:
            self._record.decision = Decision.REFUSED_FULL
