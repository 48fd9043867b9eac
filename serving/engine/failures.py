"""Failures: back-off after failed engines, and GPUs on which engines keep failing.

The directory records every failure here. Plain data, the time given; the history is bounded.
"""

from __future__ import annotations

from collections import Counter, deque

import msgspec

#: Seconds after which a failure no longer delays starts, and no longer counts against a device.
_CRASH_WINDOW_S = 900.0
_DEVICE_WINDOW_S = 24 * 3600.0
#: Exponential back-off: no wait after the first failure, then 5, 10, 20 … seconds, up to five minutes.
_FIRST_WAIT_S = 5.0
_LONGEST_WAIT_S = 300.0
#: Failures on one device before it is reported: one may be the model's fault, two a coincidence.
_SUSPICIOUS = 3
#: Failures kept: two days of a crash loop at its slowest.
_REMEMBERED = 600


class EngineFailure(msgspec.Struct, frozen=True):
    """One engine that failed to start, or died."""

    model: str
    node: str
    #: Indices of the GPUs it held; empty on the CPU.
    devices: tuple[str, ...]
    failed_at: float
    #: Why its replica ended it, in one clause; None where it ended by itself.
    ejected_because: str | None = None


class FailureHistory:
    """The failures since this directory started."""

    def __init__(self) -> None:
        self._failures: deque[EngineFailure] = deque(maxlen=_REMEMBERED)

    def record(self, failure: EngineFailure) -> None:
        """Add a failure."""
        self._failures.append(failure)

    def wait_s(self, model: str, now: float) -> float:
        """Back-off: seconds that the next engine of `model` should wait before it starts."""
        recent = [it.failed_at for it in self._failures if it.model == model and now - it.failed_at < _CRASH_WINDOW_S]
        if len(recent) < 2:
            return 0.0
        wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (len(recent) - 2))
        return max(0.0, recent[-1] + wait_s - now)

    def ejections(self, now: float) -> list[str]:
        """One sentence for each engine that was taken out lately although its processes lived."""
        return [
            f"An engine of {it.model} was taken out: {it.ejected_because}."
            for it in self._failures
            if it.ejected_because and now - it.failed_at < _CRASH_WINDOW_S
        ]

    def suspects(self, now: float) -> list[str]:
        """One sentence for each device on which engines keep failing, whatever models they serve."""
        recent = [it for it in self._failures if now - it.failed_at < _DEVICE_WINDOW_S]
        counts = Counter((it.node, device) for it in recent for device in it.devices)
        return [
            f"{count} engines failed on GPU {device} of node {node} within a day: look at its Xid and ECC errors."
            for (node, device), count in sorted(counts.items())
            if count >= _SUSPICIOUS
        ]
