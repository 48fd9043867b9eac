"""Outcomes: what became of each request, and whether it met what was promised. Pure.

Everything counts from when a request was due, not from when it was sent: a generator that is late, or a connection that
waits, is a user who waits (no coordinated omission).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from loadtest.workload import Kind
from serving.gateway.observe.slo import Verdict


class RequestOutcome(msgspec.Struct, frozen=True, array_like=True):
    """One request. Instants are seconds since the start of the run."""

    session: int
    turn: int
    kind: Kind
    due_s: float
    began_s: float
    ended_s: float
    #: Name and text of the failure; empty for an answer that came whole.
    failure_kind: str = ""
    failure: str = ""
    #: When the first piece of the answer was here; None for what is not streamed, or failed before.
    first_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    #: Seconds between one piece and the next, as 32-bit floats: runs have millions of them.
    gaps: bytes = b""

    @property
    def is_ok(self) -> bool:
        return not self.failure_kind

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def lateness_s(self) -> float:
        """How long after it was due the request was begun: the generator's own fault."""
        return self.began_s - self.due_s

    @property
    def ttft_s(self) -> float | None:
        """To the first piece of the answer; to the whole of one without pieces, such as an embedding."""
        if self.first_s is not None:
            return self.first_s - self.due_s
        return self.latency_s if self.is_ok else None

    @property
    def gaps_s(self) -> array[float]:
        return array("f", self.gaps)

    @property
    def tpot_s(self) -> float | None:
        """From the first piece to the last, by tokens after the first; None where there is only one."""
        if self.first_s is None or self.output_tokens < 2:
            return None
        return sum(self.gaps_s) / (self.output_tokens - 1)

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens of the answer by the seconds it took from when it was due."""
        return self.output_tokens / self.latency_s if self.is_ok and self.output_tokens else None


def packed(instants_s: Sequence[float]) -> bytes:
    """The gaps between those instants, as a RequestOutcome holds them."""
    return array("f", (after - before for before, after in pairwise(instants_s))).tobytes()


class RequestSlo(msgspec.Struct, frozen=True):
    """What is promised of each request: seconds to the first token, and seconds a token after it."""

    ttft_s: float
    tpot_s: float


def judge(outcome: RequestOutcome, slo: RequestSlo) -> Verdict:
    """The first promise that was broken, or MET."""
    if not outcome.is_ok:
        return Verdict.FAILED
    if outcome.ttft_s is None or outcome.ttft_s > slo.ttft_s:
        return Verdict.SLOW_FIRST_TOKEN
    return Verdict.SLOW_TOKENS if (outcome.tpot_s or 0.0) > slo.tpot_s else Verdict.MET
