"""Progress: an engine that is stopped or hangs is told from one that is busy, starved, idle or read slowly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from serving.engine.progress import (
    ASK_INTERVAL_S,
    QUIET_LIMIT_S,
    STOPPED_LIMIT_S,
    Evidence,
    Limits,
    Watch,
)

CPU = Limits.of(2048, on_gpus=False)
GPU = Limits.of(8192, on_gpus=True)
#: Processor seconds that an engine's start takes.
STARTED_S = 30.0
#: Seconds within which a stopped process must have been noticed.
NOTICED_S = 10.0


def trace(
    seconds: float,
    *,
    start: float = 0.0,
    every: float = 1.0,
    moves: bool = False,
    calls: int = 1,
    stopped: str | None = None,
    share: float = 0.0,
    answers: bool = True,
) -> Iterator[Evidence]:
    """Looks at an engine that goes on in one way; `share` is the part of a processor that its ranks use."""
    for n in range(round(seconds / every) + 1):
        at = start + n * every
        figures = (at if moves else 7.0,) if answers else None
        yield Evidence(at, figures, calls, stopped, STARTED_S + at * share)


def noticed(looks: Iterable[Evidence], limits: Limits = CPU) -> tuple[float, str] | None:
    """When the engine was called wedged, and why."""
    watch = Watch(limits)
    for seen in looks:
        if reason := watch.judge(seen):
            return seen.at, reason
    return None


def test_a_stopped_process_is_noticed_whatever_the_figures_say() -> None:
    """With calls or without, answering or not, computing elsewhere or not; its name is in the reason."""
    for traits in ({}, {"calls": 0}, {"answers": False}, {"share": 1.0}, {"moves": True}):
        found = noticed(trace(30, stopped="Worker_TP1", **traits))
        assert found and STOPPED_LIMIT_S <= found[0] < NOTICED_S and found[1] == "its Worker_TP1 process is stopped"


def test_a_debuggers_pause_is_no_wedge() -> None:
    """A process that runs again in time, however often it is stopped."""
    pauses = [
        look
        for n in range(50)
        for look in (
            *trace(4, start=6 * n, stopped="EngineCore", moves=True),
            *trace(1, start=6 * n + 5, moves=True),
        )
    ]
    assert noticed(pauses) is None


def test_calls_that_nothing_computes_are_noticed() -> None:
    """A deadlock: figures stand still, no token comes and no process computes."""
    found = noticed(trace(30))
    assert found and QUIET_LIMIT_S <= found[0] < NOTICED_S and "computes nothing" in found[1]


def test_without_processes_there_is_no_quiet() -> None:
    """Whose processor time is not known, as if they were none, is given the time of a busy engine."""
    unknown = [Evidence(at, (7.0,), 1, None, 0.0) for at in map(float, range(100))]
    assert noticed(unknown) is None


def test_a_server_that_hangs_has_the_time_of_a_busy_engine() -> None:
    """Its silence says nothing of calls: on a starved machine an idle engine looks the same for a while."""
    assert noticed(trace(60, answers=False)) is None
    found = noticed(trace(300, answers=False))
    assert found and CPU.still_s <= found[0] <= CPU.still_s + 1


@pytest.mark.parametrize(("limits", "seconds"), [(CPU, 122.4), (GPU, 28.192)], ids=["CPU", "GPU"])
def test_a_hang_that_spins_is_noticed_after_the_longest_step(limits: Limits, seconds: float) -> None:
    """A GPU that hangs keeps a processor busy: the limit follows the tokens of a step and the slowest pace."""
    assert limits.still_s == pytest.approx(seconds)
    found = noticed(trace(300, share=1.0), limits)
    assert found and limits.still_s <= found[0] <= limits.still_s + 1 and "no progress for" in found[1]


def test_steps_of_a_long_prompt_are_progress() -> None:
    """A prompt of 100,000 tokens is computed in 49 steps of 2,048; each may take long, and the figures move at its end."""
    steps = [Evidence(at, (float(at // 60),), 1, None, at * 1.9) for at in map(float, range(49 * 60))]
    assert noticed(steps) is None


def test_a_starved_engine_is_no_wedge() -> None:
    """On a saturated machine the ranks get a twentieth of a core, and a step takes a minute and a half."""
    starved = [Evidence(at, (float(at // 90),), 64, None, at * 0.05) for at in map(float, range(600))]
    assert noticed(starved) is None


def test_an_idle_engine_is_no_wedge_and_says_how_long_it_was() -> None:
    """Nothing moves because nothing is asked; the time counts until the next call."""
    watch = Watch(CPU)
    assert [watch.judge(seen) for seen in trace(300, calls=0)] == [None] * 301 and watch.idle_s == 300
    watch.judge(Evidence(301.0, (8.0,), 1, None, 0.1))
    assert watch.idle_s == 0


def test_a_token_that_comes_clears_an_engine() -> None:
    """Figures that stand still although nothing is left to do: one token is asked for in time, and now and then."""
    watch, asked = Watch(CPU), []
    for seen in trace(100):
        assert watch.judge(seen) is None
        if watch.must_ask():
            asked.append(seen.at)
            watch.has_answered()
    assert asked[0] < QUIET_LIMIT_S and len(asked) >= 15 and asked[1] - asked[0] >= ASK_INTERVAL_S


def test_an_engine_that_computes_is_not_asked_at_once() -> None:
    """A token is work too, and is counted by the engine: only one that computes for long without a result is asked."""
    watch, asked = Watch(CPU), []
    for seen in trace(100, share=1.0):
        watch.judge(seen)
        if watch.must_ask():
            asked.append(seen.at)
    assert asked[0] == pytest.approx(CPU.still_s / 2, abs=1)


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """After a machine has slept, or while this process is starved itself, one late look proves little."""
    assert noticed([*trace(3), *trace(2, start=4000)]) is None
    found = noticed(trace(100, every=20.0))
    assert found and found[0] == 80.0


def test_a_call_that_ends_is_progress() -> None:
    """Whatever stood still before."""
    assert noticed([*trace(6), *trace(6, start=7, calls=0), *trace(6, start=14)]) is None
