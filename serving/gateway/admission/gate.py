"""Gate: the bound on open requests, asked before a body is read, so that memory is bounded too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import GatewayFull
from serving.gateway.nouns import CallRecord, Decision


class Gate:
    """Counts the calls that are open now."""

    def __init__(self, open_requests_max: int) -> None:
        self._open_requests_max = open_requests_max
        self._open_requests = 0

    @contextmanager
    def entered(self, record: CallRecord) -> Iterator[None]:
        """One call is open while inside; raises GatewayFull when too many are."""
        if self._open_requests >= self._open_requests_max:
            record.decision = Decision.REFUSED_FULL
            raise GatewayFull("Too many requests are open; please try again.", retry_after_s=1)
        self._open_requests += 1
        try:
            yield
        finally:
            self._open_requests -= 1
