"""Failures: what do the engines that failed have in common, and how long should the next start wait?

Asked by the directory, which hears every failure. Plain data, the time given; what is remembered is bounded.
"""

from __future__ import annotations

from collections import Counter, deque

import msgspec

#: Seconds after which a failure no longer slows starts down, and no longer counts against a device.
_CRASH_WINDOW_S = 900.0
_DEVICE_WINDOW_S = 24 * 3600.0
#: The first failure is replaced at once; then 5, 10, 20 … seconds, up to five minutes.
_FIRST_WAIT_S = 5.0
_LONGEST_WAIT_S = 300.0
#: Failures on one device before it is named: one may be the model's, two a coincidence.
_SUSPICIOUS = 3
#: Failures remembered: two days of a crash loop at its slowest.
_REMEMBERED = 600


class Failure(msgspec.Struct, frozen=True):
    """One engine's end that nobody asked for."""

    model: str
    node: str
    #: Indices of the GPUs it held; empty on the CPU.
    devices: tuple[str, ...]
    at: float


class Failures:
    """The failures of this directory's life."""

    def __init__(self) -> None:
        self._heard: deque[Failure] = deque(maxlen=_REMEMBERED)

    def hear(self, failure: Failure) -> None:
        self._heard.append(failure)

    def wait_s(self, model: str, now: float) -> float:
        """Seconds the next engine of `model` should wait before it starts."""
        recent = [it.at for it in self._heard if it.model == model and now - it.at < _CRASH_WINDOW_S]
        if len(recent) < 2:
            return 0.0
        wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (len(recent) - 2))
        return max(0.0, recent[-1] + wait_s - now)

    def suspects(self, now: float) -> list[str]:
        """One sentence for each device on which engines keep failing, whatever they served."""
        recent = [it for it in self._heard if now - it.at < _DEVICE_WINDOW_S]
        counts = Counter((it.node, device) for it in recent for device in it.devices)
        return [
            f"{count} engines failed on GPU {device} of node {node} within a day: look at its Xid and ECC errors."
            for (node, device), count in sorted(counts.items())
            if count >= _SUSPICIOUS
        ]
