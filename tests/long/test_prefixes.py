"""Routing to the replica that has a conversation: two real engines, and their own counters of prefix-cache hits."""

import json
from pathlib import Path

import pytest

from tests.stack.conftest import SMOLLM2
from tests.stack.http import bearer, call
from tests.stack.running import Stack, running
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

TWO = {"SERVING_MODELS": json.dumps([{"name": SMOLLM2, "min_replicas": 2, "max_replicas": 2}])}
CONVERSATIONS = 4


def counters(stack: Stack) -> dict[str, tuple[int, int]]:
    """Replica → prompt tokens that its engine looked up in its prefix cache, and found there."""
    loads = {it.report.replica_id: it.report.load for it in stack.listed()}
    return {name: (load.prefix_queried_tokens or 0, load.prefix_hit_tokens) for name, load in loads.items()}


def ask(stack: Stack, messages: list[dict[str, str]]) -> tuple[str, int, int, str]:
    """The replica that answered, by its counters; what it found cached; the prompt's tokens; the answer."""
    before = counters(stack)
    body = {"model": SMOLLM2, "messages": messages, "max_tokens": 8, "temperature": 0}
    status, _, answer = call(stack.url, "POST", "/v1/chat/completions", body, bearer(stack.key))
    assert status == 200, answer
    said = json.loads(answer)
    tokens = said["usage"]["prompt_tokens"]

    def moved() -> list[str]:
        now = counters(stack)
        return [name for name in before if now[name][0] >= before[name][0] + tokens]

    until(moved, 20, 0.2)
    (replica_id,) = moved()
    hits = counters(stack)[replica_id][1] - before[replica_id][1]
    return replica_id, hits, tokens, said["choices"][0]["message"]["content"]


def test_the_second_turn_is_answered_by_the_replica_that_has_the_first(tmp_path: Path) -> None:
    """First turns spread over both; each second one finds the first in the cache of the engine that it goes to."""
    with running(tmp_path, SMOLLM2, TWO) as stack:
        until(lambda: len(stack.ready()) == 2, 600, 0.5)
        talks, homes = [], []
        for number in range(CONVERSATIONS):
            talk = [{"role": "user", "content": f"{number}: " + f"Story {number} was told by the fire. " * 120}]
            replica_id, _, tokens, said = ask(stack, talk)
            homes.append((replica_id, tokens))
            talks.append([*talk, {"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}])
        assert len({replica_id for replica_id, _ in homes}) == 2, "both were used"
        # Backwards: calls that merely took turns would go to the other one.
        for talk, (home, first_tokens) in reversed(list(zip(talks, homes, strict=True))):
            replica_id, hits, _, _ = ask(stack, talk)
            assert replica_id == home
            # All of the first turn but its last block, which was not full, and how the template ends a prompt.
            assert hits >= 0.9 * first_tokens
