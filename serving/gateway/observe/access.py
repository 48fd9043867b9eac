"""Access: the one log line each request leaves. Who, what, how it went; what was said only where the settings say so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time

import msgspec

from serving.gateway.nouns import CallRecord, Usage

#: Asked every few seconds by machines: their lines would drown out everyone else's.
PROBES = frozenset({"/", "/health", "/health/live", "/health/ready", "/health/models", "/metrics"})

LOGGER = "serving.access"
#: Seconds for which lines wait for others.
MOMENT_S = 0.01
#: What a pipe mixes with no other thread's lines; only a logged prompt is longer.
PIPE_BYTES = 4 * 1024

log = logging.getLogger(LOGGER)


class AccessLine(msgspec.Struct, frozen=True):
    """One request as the log has it; seconds, to the microsecond."""

    request_id: str
    route: str
    status: int
    outcome: str
    duration_s: float
    #: Of these, what the client took to send its body and to read what was ready for it.
    client_s: float
    #: Of the trace this request belongs to: the client's, or one of its own.
    trace_id: str
    #: The error's code when it did not end well.
    reason: str
    tenant: str | None
    key_id: str | None
    #: The end user, where one is known: a reference, and no name.
    user_ref: str | None
    model: str | None
    replica_id: str | None
    #: Seconds it waited for a replica that could take it.
    waited_s: float
    #: Seconds to a stream's first byte, without what the client took to send its body.
    ttft_s: float | None
    retries: int
    usage: Usage
    #: Its tenant or key has spent more of the month's money than its soft budget.
    is_over_soft_budget: bool
    #: The batch of which it is a line.
    batch_id: str | None
    #: The body as it was sent, where `gateway.log_prompts` says so.
    prompt: str | None


def line_of(record: CallRecord) -> AccessLine:
    """A finished request's line."""
    return AccessLine(
        request_id=record.request_id,
        route=record.route.label,
        status=record.status,
        outcome=record.outcome,
        duration_s=round(record.duration_s, 6),
        client_s=round(record.client_s, 6),
        trace_id=record.trace_id,
        reason=record.reason,
        tenant=record.tenant,
        key_id=record.caller.key_id if record.caller else None,
        user_ref=record.caller.user_ref if record.caller else None,
        model=record.model,
        replica_id=record.replica_id,
        waited_s=round(record.waited_s, 6),
        ttft_s=None if record.ttft_s is None else round(record.ttft_s, 6),
        retries=record.retries,
        usage=record.usage,
        is_over_soft_budget=record.is_over_soft_budget,
        batch_id=record.batch_id,
        prompt=record.prompt,
    )


def is_probe(record: CallRecord) -> bool:
    return record.route.label in PROBES


def write_text(record: CallRecord) -> None:
    """One line of JSON through Python's logging, a probe's at DEBUG."""
    level = logging.DEBUG if is_probe(record) else logging.INFO
    if log.isEnabledFor(level):
        log.log(level, msgspec.json.encode(line_of(record)).decode())


class _JsonLine(msgspec.Struct):
    """As `observe.logs` has the others."""

    time_s: float
    level: str
    logger: str
    message: AccessLine


class JsonLog:
    """JSON lines among the others, past Python's logging, whose layers take 22 us of a request (OBS-1), and those of a moment in
    one write: each gives the interpreter away (OBS-13).

    A log that cannot be written fails no request.
    """

    def __init__(self, moment_s: float = MOMENT_S) -> None:
        self._moment_s = moment_s
        self._lines = b""

    def write(self, record: CallRecord) -> None:
        """For calls in the event loop: the line is there a moment later."""
        if is_probe(record):
            return
        with contextlib.suppress(ValueError):
            line = msgspec.json.encode(_JsonLine(round(time.time(), 3), "info", LOGGER, line_of(record))) + b"\n"
            self._add(line)

    def _add(self, line: bytes) -> None:
        if len(self._lines) + len(line) > PIPE_BYTES:
            self.flush()
        if not self._lines:
            asyncio.get_running_loop().call_later(self._moment_s, self.flush)
        self._lines += line

    def flush(self) -> None:
        """Write what waits."""
        lines, self._lines = self._lines, b""
        if lines:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(lines.decode())
