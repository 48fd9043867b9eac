"""Gate: the bounds on open requests and on what they hold, asked before a body is read and while it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import GatewayFull
from serving.gateway.admission.memory import Memory, Share
from serving.gateway.nouns import CallRecord, Decision


class Gate:
    """Counts the calls that are open now."""

    def __init__(self, open_requests_max: int, memory: Memory) -> None:
        self._open_requests_max = open_requests_max
        self._memory = memory
        self._open_requests = 0

    @contextmanager
    def entered(self, record: CallRecord) -> Iterator[Share]:
        """One call is open while inside, with its share of the memory; raises GatewayFull when too many are, or hold too much."""
        if self._open_requests >= self._open_requests_max:
            record.decision = Decision.REFUSED_FULL
            raise GatewayFull("Too many requests are open; please try again.", retry_after_s=1)
        self._open_requests += 1
        try:
            with self._memory.share() as share:
                yield share
        except GatewayFull:
            if record.decision is None:
                record.decision = Decision.REFUSED_FULL
            raise
        finally:
            self._open_requests -= 1
