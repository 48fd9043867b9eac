"""Two stacks of the gpt-oss architecture, one beside the other."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.stack.conftest import RANDOM, TINY
from tests.stack.running import Stack, running

#: Output tokens of a call to the random model that sets no limit.
DEFAULT_OUTPUT_TOKENS = 24


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The model that knows a handful of conversations by heart."""
    with running(tmp_path_factory.mktemp("tiny"), TINY) as it:
        yield it


@pytest.fixture(scope="package")
def tiny_client(tiny: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key=tiny.key, max_retries=0) as it:
        yield it


@pytest.fixture(scope="package")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The model that knows nothing: random weights."""
    described = f"[{{name: {RANDOM}, default_output_tokens: {DEFAULT_OUTPUT_TOKENS}}}]"
    with running(tmp_path_factory.mktemp("random"), RANDOM, {"SERVING_MODELS": described}) as it:
        yield it
