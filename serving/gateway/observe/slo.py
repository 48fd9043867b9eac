"""SLO: did a request get what was promised? A pure judgement of one request that has ended."""

from __future__ import annotations

from enum import StrEnum

from serving.config import Slo
from serving.gateway.nouns import CallRecord, Outcome


class Verdict(StrEnum):
    """How a request stands to its model's SLO."""

    MET = "met"
    SLOW_FIRST_TOKEN = "slow_first_token"  # noqa: S105 A verdict, no secret.
    SLOW_TOKENS = "slow_tokens"
    #: It ended in an error of ours.
    FAILED = "failed"


def judge_call(slo: Slo, record: CallRecord) -> Verdict | None:
    """As `judge`, by the record of a call that has ended."""
    return judge(
        slo,
        record.outcome,
        duration_s=record.served_s,
        ttft_s=record.ttft_s,
        completion_tokens=record.usage.completion_tokens,
    )


def judge(
    slo: Slo, outcome: Outcome, *, duration_s: float, ttft_s: float | None, completion_tokens: int
) -> Verdict | None:
    """None where nothing was promised: the client made a mistake, or left.

    Both times are without what the client took to send its body and to read.
    A stream is judged by its first token and by the mean gap between the others; a whole answer, whose tokens no client
    sees arrive, by whether it took longer than both together allow.
    """
    if outcome in (Outcome.REJECTED, Outcome.DISCONNECTED):
        return None
    if outcome is not Outcome.OK:
        return Verdict.FAILED
    gaps = max(completion_tokens - 1, 0)
    if ttft_s is None:
        is_slow = duration_s > slo.ttft_s + gaps * slo.time_per_output_token_s
        return Verdict.SLOW_TOKENS if is_slow else Verdict.MET
    if ttft_s > slo.ttft_s:
        return Verdict.SLOW_FIRST_TOKEN
    return Verdict.SLOW_TOKENS if duration_s - ttft_s > gaps * slo.time_per_output_token_s else Verdict.MET
