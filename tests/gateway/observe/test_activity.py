"""Activity: the last hour in slots, of one process and of several."""

from __future__ import annotations

import msgspec
import pytest

from serving.config import Slo
from serving.gateway.nouns import CallRecord, Outcome, Route, Usage
from serving.gateway.observe.activity import MODELS_MAX, SLOT_S, SLOTS, Activity, Did, Slot, merged, series
from tests.clock import Clock

SLO = Slo(ttft_s=1.0, time_per_output_token_s=0.1)


def call(
    *, ttft_s: float | None = 0.5, outcome: Outcome = Outcome.OK, model: str = "m", is_listed: bool = True
) -> CallRecord:
    """One that has ended after a second."""
    return CallRecord(
        request_id="r",
        started_at=0.0,
        route=Route("/v1/chat/completions", is_billed=True),
        model=model,
        is_model_listed=is_listed,
        is_streamed=ttft_s is not None,
        first_byte_at=ttft_s,
        ended_at=1.0,
        outcome=outcome,
        usage=Usage(prompt_tokens=3, completion_tokens=20),
    )


def of_one(activity: Activity, clock: Clock) -> dict[str, object]:
    (one,) = series(merged(activity.slots()), int(clock() // SLOT_S))
    return msgspec.structs.asdict(one)


def test_a_slot_sums_up_the_calls_that_ended_in_it() -> None:
    """Requests, tokens and kept promises; the newest slot is the last."""
    clock = Clock()
    activity = Activity(lambda _: SLO, clock)
    activity.settle(call())
    activity.settle(call(outcome=Outcome.FAILED))
    clock.advance(SLOT_S)
    activity.settle(call(ttft_s=3.0))
    activity.settle(call(outcome=Outcome.DISCONNECTED))
    hour = of_one(activity, clock)
    ends = {name: values[-2:] for name, values in hour.items() if isinstance(values, list)}
    assert all(len(values) == SLOTS for values in hour.values() if isinstance(values, list))
    assert (ends["requests"], ends["failed"]) == ([2, 2], [1, 0])
    assert (ends["prompt_tokens"], ends["completion_tokens"]) == ([6, 6], [40, 40])
    assert (ends["judged"], ends["kept"]) == ([2, 1], [1, 0])


def test_an_hour_is_all_that_is_kept() -> None:
    """At rest too: what is older is gone when it is asked for."""
    clock = Clock()
    activity = Activity(lambda _: SLO, clock)
    activity.settle(call())
    clock.advance(SLOT_S * (SLOTS - 1))
    assert len(activity.slots()) == 1
    clock.advance(SLOT_S)
    assert activity.slots() == []


@pytest.mark.parametrize("ttft_s", [0.004, 0.25, 1.7, 40.0])
def test_times_are_kept_to_a_twentieth(ttft_s: float) -> None:
    """Most streams' time and the slowest one's, where it is one of them."""
    clock = Clock()
    activity = Activity(lambda _: SLO, clock)
    for _ in range(10):
        activity.settle(call(ttft_s=ttft_s))
    activity.settle(call(ttft_s=ttft_s * 4))
    hour = of_one(activity, clock)
    assert isinstance(hour["ttft_p50_s"], list) and isinstance(hour["ttft_p95_s"], list)
    assert hour["ttft_p50_s"][-1] == pytest.approx(ttft_s, rel=0.05)
    assert hour["ttft_p95_s"][-1] == pytest.approx(ttft_s * 4, rel=0.05)
    assert hour["ttft_p50_s"][0] is None


def test_only_calls_of_listed_models_are_shown() -> None:
    """A client cannot invent one, and the number of them is bounded."""
    activity = Activity(lambda _: SLO, Clock())
    activity.settle(call(is_listed=False))
    activity.settle(msgspec.structs.replace(call(), route=Route("/v1/models")))
    assert activity.slots() == []
    for number in range(MODELS_MAX + 5):
        activity.settle(call(model=f"m{number}"))
    assert len(activity.slots()[0].did) == MODELS_MAX


def test_processes_are_laid_on_one_another() -> None:
    """Slot by slot and model by model, also over the wire."""
    mine = [Slot(7, {"a": Did(requests=1, first_tokens={3: 1})})]
    its = [Slot(7, {"a": Did(requests=2, first_tokens={3: 1, 4: 2}), "b": Did(requests=5)})]
    sent = msgspec.json.decode(msgspec.json.encode(its), type=list[Slot])
    did = merged([*mine, *sent])[7]
    assert (did["a"].requests, did["b"].requests, did["a"].first_tokens) == (3, 5, {3: 2, 4: 2})
