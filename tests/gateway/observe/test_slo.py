"""SLO: a pure judgement of one request that has ended."""

from __future__ import annotations

import pytest

from serving.config import GatewaySettings, Slo
from serving.gateway.nouns import Outcome
from serving.gateway.observe.slo import Verdict, judge

SLO = Slo(ttft_s=1, time_per_output_token_s=0.1)


@pytest.mark.parametrize(
    ("outcome", "duration_s", "ttft_s", "tokens", "verdict"),
    [
        (Outcome.OK, 2.0, 1.0, 11, Verdict.MET),
        (Outcome.OK, 2.1, 1.0, 11, Verdict.SLOW_TOKENS),
        (Outcome.OK, 1.2, 1.1, 11, Verdict.SLOW_FIRST_TOKEN),
        (Outcome.OK, 1.0, 1.0, 0, Verdict.MET),
        (Outcome.OK, 2.0, None, 11, Verdict.MET),
        (Outcome.OK, 2.1, None, 11, Verdict.SLOW_TOKENS),
        (Outcome.FAILED, 0.1, 0.1, 1, Verdict.FAILED),
        (Outcome.CANCELLED, 0.1, 0.1, 1, Verdict.FAILED),
        (Outcome.REJECTED, 0.1, None, 0, None),
        (Outcome.DISCONNECTED, 9.0, 9.0, 1, None),
    ],
)
def test_a_request_is_judged_by_its_slo(
    outcome: Outcome, duration_s: float, ttft_s: float | None, tokens: int, verdict: Verdict | None
) -> None:
    """First token, then the mean of the others; a whole answer by both together; not what a client did to itself."""
    assert judge(SLO, outcome, duration_s=duration_s, ttft_s=ttft_s, completion_tokens=tokens) is verdict


def test_a_models_own_slo_comes_before_the_default() -> None:
    """`model_slos` overrides `slo`, for its own model alone."""
    settings = GatewaySettings(slo=SLO, model_slos={"slow": Slo(ttft_s=60)})
    assert (settings.slo_of("slow").ttft_s, settings.slo_of("other").ttft_s) == (60, 1)
