"""When sessions begin: shapes, traces, shares. Pure, so by arithmetic alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest import arrivals
from loadtest.arrivals import BURST_HEIGHT, BURSTS_AT, NIGHT_RATIO, Rate
from loadtest.scaling.traces import TracedCall
from serving.errors import Refusal

HOUR_S = 3600.0
SHAPES: dict[str, Callable[[], Rate]] = {
    "steady": lambda: arrivals.steady(5.0),
    "ramp": lambda: arrivals.ramp(1.0, 9.0, 5, HOUR_S),
    "diurnal": lambda: arrivals.diurnal(8.0, HOUR_S),
    "burst": lambda: arrivals.bursts(4.0, HOUR_S),
}


def due(rate: Rate, seed: int = 1) -> list[float]:
    return list(arrivals.instants(rate, HOUR_S, random.Random(seed)))


@pytest.mark.parametrize("name", SHAPES)
def test_arrivals_follow_their_shape(name: str) -> None:
    """In each tenth of the run as many sessions as the rate's integral over it, within four standard deviations."""
    rate = SHAPES[name]()
    instants = due(rate)
    for tenth in range(10):
        begins_s, ends_s = HOUR_S * tenth / 10, HOUR_S * (tenth + 1) / 10
        wanted = sum(rate(begins_s + second) for second in range(int(ends_s - begins_s)))
        came = sum(begins_s <= it < ends_s for it in instants)
        assert abs(came - wanted) < 4 * wanted**0.5


@pytest.mark.parametrize("name", SHAPES)
def test_a_seed_decides(name: str) -> None:
    """The same seed gives the same instants, another seed others; all rise, from 0 up to the run's length."""
    first, again, other = due(SHAPES[name]()), due(SHAPES[name]()), due(SHAPES[name](), seed=2)
    assert first == again != other
    assert all(before <= after for before, after in pairwise(first))
    assert first[0] >= 0 and first[-1] < HOUR_S


def test_a_ramp_is_a_staircase() -> None:
    """Each step has one rate, from the first to the last, equally far apart; one step has the first alone."""
    rate = arrivals.ramp(2.0, 8.0, 4, 400.0)
    assert [rate(at) for at in (0, 99.9, 100, 250, 399.9, 400)] == [2.0, 2.0, 4.0, 6.0, 8.0, 8.0]
    assert arrivals.ramp(2.0, 8.0, 1, 400.0)(399) == 2.0


def test_a_day_has_its_top_at_noon() -> None:
    rate = arrivals.diurnal(10.0, 240.0)
    assert rate(0) == pytest.approx(10 * NIGHT_RATIO) and rate(240) == pytest.approx(10 * NIGHT_RATIO)
    assert rate(120) == pytest.approx(10.0) == arrivals.top_of(rate, 240.0)


def test_a_burst_rises_and_fades() -> None:
    """Before the first it is the base alone; at a burst's top it is the base and BURST_HEIGHT times it at least."""
    rate = arrivals.bursts(2.0, 600.0)
    assert rate(BURSTS_AT[0] * 600) == 2.0
    assert [rate(part * 600 + 10) >= 2.0 * (1 + BURST_HEIGHT) - 1e-9 for part in BURSTS_AT] == [True] * 3


def test_a_rate_of_nothing_brings_nobody() -> None:
    assert due(arrivals.steady(0.0)) == []


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_shares_are_the_whole(of: int) -> None:
    """Every arrival goes to exactly one worker, and shares differ by one at most."""
    instants = due(arrivals.steady(0.1))
    shares = [arrivals.share(instants, index, of) for index in range(of)]
    assert sorted(at for share in shares for at in share) == instants
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
MOONCAKE = [
    {"timestamp": 3000, "input_length": 30, "output_length": 5, "hash_ids": [0]},
    {"timestamp": 0, "input_length": 6955, "output_length": 52, "hash_ids": [0, 1]},
]


def test_traces_are_read_with_their_instants_and_tokens(tmp_path: Path) -> None:
    """Both formats, in order of arrival whatever the file's."""
    (tmp_path / "azure.csv").write_text(AZURE)
    (tmp_path / "mooncake.jsonl").write_text("".join(f"{json.dumps(it)}\n" for it in MOONCAKE))
    first, second = arrivals.read_trace(tmp_path / "azure.csv")
    assert (first, second.prompt_tokens, second.output_tokens) == (TracedCall(0.0, 374, 44), 396, 109)
    assert second.arrived_at == pytest.approx(4.314579, abs=1e-5)
    assert arrivals.read_trace(tmp_path / "mooncake.jsonl") == [
        TracedCall(0.0, 6955, 52, blocks=(0, 1)),
        TracedCall(3.0, 30, 5, blocks=(0,)),
    ]


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("trace.txt", AZURE, ".jsonl"),
        ("trace.csv", "a,b\n1,2\n", "ContextTokens"),
        ("trace.csv", AZURE.replace("374", "many"), "ContextTokens"),
        ("trace.jsonl", "[]\n", "input_length"),
        ("trace.jsonl", '{"timestamp": 1}\n', "input_length"),
        ("trace.jsonl", "{\n", "input_length"),
        ("missing.csv", None, "cannot be read"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, name: str, text: str | None, word: str) -> None:
    """In a sentence that says what a trace is."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(Refusal, match=word):
        arrivals.read_trace(tmp_path / name)


def test_a_replay_thins_and_hastens() -> None:
    """Every n-th call, its instant divided by the speed, from the first one's on and as far as the run reaches."""
    calls = [TracedCall(100.0 + at, at, 1) for at in range(0, 100, 10)]
    replayed = arrivals.replay(calls, duration_s=30.0, every=2, speed=2.0)
    assert [(it.arrived_at, it.prompt_tokens) for it in replayed] == [(0.0, 0), (10.0, 20), (20.0, 40)]
    assert arrivals.replay([], 30.0) == []
