"""The stack that tests share: each engine start costs most of a minute on two cores, so there are few.

`tests/conftest.py` gives this folder to one worker and `gpt_oss/` to another; each stops its stacks when it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.stack.running import Stack, running

SMOLLM2 = "smollm2-135m-instruct"
TINY = "tiny-gpt-oss"
RANDOM = "random-gpt-oss"
#: Settings every test stack runs with: aliases, a limit that a test can reach, and an SLO that is kept on a machine that
#: other tests keep busy.
SETTINGS = {
    "SERVING_GATEWAY__ALIASES": '{"gpt-4o": "smollm2-135m-instruct", "claude-sonnet": "smollm2-135m-instruct"}',
    "SERVING_GATEWAY__MAX_BODY_BYTES": "1048576",
    "SERVING_GATEWAY__SLO": '{"ttft_s": 60, "time_per_output_token_s": 5}',
}


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The default model."""
    with running(tmp_path_factory.mktemp("smollm2"), SMOLLM2, SETTINGS) as it:
        yield it


@pytest.fixture(scope="package")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    """The official client, as a newcomer sets it up."""
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0) as it:
        yield it
