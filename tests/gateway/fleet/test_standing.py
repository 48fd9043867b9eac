"""Standing: what a replica is committed to, by this gateway's calls and by others'."""

from __future__ import annotations

from serving.gateway.fleet.router import CALL_TOKENS, Need
from serving.gateway.fleet.standing import Commitment, Standing
from serving.wire import EngineLoad

NEED = Need(prompt_tokens=1_000, output_tokens=200)


def test_a_call_commits_to_its_prompt_and_then_to_its_output() -> None:
    """What is cached is not computed; the first token says that the prompt is done; the end, that all is."""
    one, seen = Standing("a"), []
    with Commitment(one, NEED, cached_tokens=600) as call:
        seen.append(one.committed_tokens)
        call.begun()
        call.begun()
        seen.append(one.committed_tokens)
    assert seen == [400 + 200 + CALL_TOKENS, 200 + CALL_TOKENS]
    assert (one.committed_tokens, one.own_requests, one.own_begun) == (0, 0, 0)


def test_a_call_that_ends_before_its_first_token_leaves_nothing() -> None:
    """Its replica failed, or its client left."""
    one = Standing("a")
    with Commitment(one, NEED, 0):
        assert one.own_requests == 1
    assert (one.committed_tokens, one.own_requests, one.own_begun) == (0, 0, 0)


def test_what_others_have_there_is_the_report_without_ours() -> None:
    """No call is counted twice. Those that wait have all before them, those that run half of their output."""
    one = Standing("a")
    running = Commitment(one, NEED, 0)
    running.begun()
    Commitment(one, NEED, 0)
    own = one.committed_tokens
    assert one.others(EngineLoad(running_requests=4, waiting_requests=3), 1_000.0, 300.0) == (2, 3)
    assert one.committed_tokens - own == 2 * 1_300 + 3 * 150
    assert one.others(EngineLoad(running_requests=1, waiting_requests=1), 1_000.0, 300.0) == (0, 0)
    assert one.committed_tokens == own


def test_a_report_older_than_our_calls_takes_nothing_away() -> None:
    """It does not have them yet: the replica has no fewer than none of others."""
    one = Standing("a")
    for _ in range(3):
        Commitment(one, NEED, 0)
    assert one.others(EngineLoad(running_requests=1), 1_000.0, 300.0) == (0, 0)
