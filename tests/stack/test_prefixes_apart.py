"""Two tenants share engines and not what those have cached: neither learns from how fast an answer comes what the other asked."""

from __future__ import annotations

import pytest

from tests.stack.conftest import SMOLLM2
from tests.stack.http import bearer, call
from tests.stack.running import Stack

#: Several of the engine's blocks of 16 tokens.
LONG = "It was a bright cold day in April, and the clocks were striking thirteen. " * 12
BODIES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1},
    "/v1/completions": {"prompt": LONG, "max_tokens": 1},
    "/v1/responses": {"input": LONG, "max_output_tokens": 1},
    "/v1/messages": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1},
}


@pytest.fixture(scope="module")
def other_key(stack: Stack) -> str:
    stack.command("tenants", "create", "another")
    return stack.command("keys", "create", "another", "--quiet").strip()


def computed(stack: Stack, route: str, key: str, text: str) -> tuple[int, int]:
    """Tokens of a prompt, and how many of them the engine found in its cache, by its own counters."""
    before = stack.engine_metrics()
    body = {name: _with(value, text) for name, value in BODIES[route].items()} | {"model": SMOLLM2}
    status, headers, answer = call(stack.url, "POST", route, body, bearer(key))
    assert status == 200, answer
    row = stack.row(headers["x-request-id"])
    hits = stack.engine_metrics()["vllm:prefix_cache_hits_total"] - before["vllm:prefix_cache_hits_total"]
    return row.prompt_tokens, round(hits)


def _with(value: object, text: str) -> object:
    """A prompt that begins with `text`."""
    if isinstance(value, str):
        return text + value
    if isinstance(value, list):
        return [{"role": "user", "content": text + LONG}]
    return value


@pytest.mark.parametrize("route", BODIES)
def test_what_one_tenant_sent_is_cached_for_it_alone(stack: Stack, other_key: str, route: str) -> None:
    """The same prompt again is found by the tenant that sent it, and computed anew for another, in every API."""
    mine = f"{route}: "
    tokens, at_first = computed(stack, route, stack.key, mine)
    _, again = computed(stack, route, stack.key, mine)
    _, for_another = computed(stack, route, other_key, mine)
    assert again > tokens / 2 > 16
    # The chat template's own beginning is the same for all, and in the cache of whoever asked before.
    assert for_another <= at_first + 16
