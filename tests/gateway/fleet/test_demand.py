"""Demand: arrivals are reported since the last reading, waiting calls for as long as they wait."""

import pytest

from serving.gateway.fleet.demand import Demands, shared
from serving.wire import Traffic
from tests.clock import Clock


def test_arrivals_are_reported_since_the_last_reading() -> None:
    """Each reader keeps its own last reading; one that skips a reading misses nothing."""
    clock = Clock()
    demands = Demands(clock)
    first = demands.read()
    demands.arrive("m", prompt_tokens=100, output_tokens=40.0)
    clock.advance(2)
    second = demands.read()
    demands.arrive("m", prompt_tokens=300, output_tokens=0.0)
    clock.advance(2)
    third = demands.read()
    assert demands.since(first, second)["m"].arrived_prompt_tokens == 100
    assert demands.since(first, second)["m"].expected_output_tokens == 40
    assert demands.since(second, third)["m"].arrived_prompt_tokens == 300
    assert demands.since(first, third)["m"].arrived_prompt_tokens == 400
    assert (first.read_at, third.read_at) == (clock.now - 4, clock.now)


def test_waiting_calls_are_reported_while_they_wait() -> None:
    """Their number, their prompts and the longest wait; nothing once they have left."""
    clock = Clock()
    demands = Demands(clock)
    before = demands.read()
    with demands.held("m", 10):
        clock.advance(3)
        with demands.held("m", 20):
            clock.advance(1)
            seen = demands.since(before, demands.read())["m"]
            assert (seen.waiting_requests, seen.oldest_wait_s, seen.waiting_prompt_tokens) == (2, 4.0, 30)
            assert demands.held_requests("m") == 2 and demands.held_requests("n") == 0
    assert demands.since(before, demands.read()) == {}


def test_lines_are_reported_while_they_are_at_engines() -> None:
    """As a number of their own, and as nothing else."""
    demands = Demands(Clock())
    before = demands.read()
    with demands.line("m"), demands.line("m"):
        assert demands.since(before, demands.read()) == {"m": Traffic(line_requests=2)}
    assert demands.since(before, demands.read()) == {} and demands.held_requests("m") == 0


def test_a_call_that_leaves_by_an_error_no_longer_waits() -> None:
    """However a wait ends, it is over."""
    demands = Demands(Clock())
    with pytest.raises(TimeoutError), demands.held("m", 1):
        raise TimeoutError
    assert demands.held_requests("m") == 0


def test_cells_share_what_arrives_and_each_sees_all_that_wait() -> None:
    """Two cells get half of the work each, but either may wake the model."""
    whole = Traffic(1, 5.0, 101, 50.0, 20.0, line_requests=3)
    assert shared(whole, 1) == whole
    assert shared(whole, 2) == Traffic(1, 5.0, 50, 25.0, 10.0, line_requests=2)
