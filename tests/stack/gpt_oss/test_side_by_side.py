"""Two stacks on one machine do not meet."""

import openai

from tests.stack.conftest import RANDOM, TINY
from tests.stack.http import bearer, call
from tests.stack.running import Stack


def test_two_stacks_run_side_by_side(tiny: Stack, fuzzer: Stack) -> None:
    """Different ports and homes: each serves its own model, with its own keys, to its own tenants."""
    for mine, other, model in ((tiny, fuzzer, TINY), (fuzzer, tiny, RANDOM)):
        client = openai.OpenAI(base_url=f"{mine.url}/v1", api_key=mine.key)
        assert model in {card.id for card in client.models.list()}
        assert call(mine.url, "GET", "/v1/models", headers=bearer(other.key))[0] == 401
        assert call(mine.directory_url(), "GET", "/directory", headers=bearer(other.secret))[0] == 401
