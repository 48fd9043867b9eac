"""Access: the one log line each request leaves. Who, what, how it went; what was said only where the settings say so."""

from __future__ import annotations

import logging

import msgspec

from serving.gateway.ledger.ledger import Usage

#: Asked every few seconds by machines: their lines would bury everyone else's.
PROBES = ("/health/", "/metrics")

LOGGER = "serving.access"

log = logging.getLogger(LOGGER)


class AccessLine(msgspec.Struct, frozen=True):
    """One request as the log has it."""

    request_id: str
    route: str
    status: int
    outcome: str
    duration_s: float
    #: Of these, what the client took to send its body and to read what was ready for it.
    client_s: float = 0.0
    #: Of the trace this request belongs to: the client's, or one of its own.
    trace_id: str = ""
    #: The error's code when it did not end well.
    reason: str = ""
    tenant: str | None = None
    key_id: str | None = None
    model: str | None = None
    replica_id: str | None = None
    #: Seconds it waited for a replica that could take it.
    waited_s: float = 0.0
    #: Seconds to a stream's first byte, without what the client took to send its body.
    ttft_s: float | None = None
    retries: int = 0
    usage: Usage = Usage()
    #: The body as it was sent, where `gateway.log_prompts` says so.
    prompt: str | None = None

    @property
    def served_s(self) -> float:
        """Seconds that were ours: what an SLO judges."""
        return self.duration_s - self.client_s


def is_probe(line: AccessLine) -> bool:
    return line.route.startswith(PROBES)


def write(line: AccessLine) -> None:
    """One line of JSON through Python's logging, a probe's at DEBUG."""
    level = logging.DEBUG if is_probe(line) else logging.INFO
    if log.isEnabledFor(level):
        log.log(level, msgspec.json.encode(line).decode())
