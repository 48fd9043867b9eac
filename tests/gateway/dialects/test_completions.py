"""Completions: several prompts in one call, bounded, with usage as in chat."""

from __future__ import annotations

import pytest

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.dialects.completions import COMPLETIONS
from tests.gateway.calls import call, draft, sent


@pytest.mark.parametrize(("default", "expected"), [(None, 16), (64, 16), (10, 10)])
def test_without_a_limit_it_is_openais(default: int | None, expected: int) -> None:
    """16 tokens, as OpenAI documents for this API, whatever more the model's default is; or what the caller may have."""
    assert sent(draft(COMPLETIONS).finish("m", "salt", default))["max_tokens"] == expected


def test_prompts_times_n_are_bounded() -> None:
    """128 sequences of one call at most: each is a place in the engine's batch."""
    assert call(COMPLETIONS, prompt=["a"] * 16, n=8).sequences == 128
    with pytest.raises(InvalidRequest, match="must not exceed 128") as refused:
        draft(COMPLETIONS, prompt=["a"] * 17, n=8)
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("count", [0, 1])
def test_log_probabilities_of_a_prompt_are_refused(count: int) -> None:
    """They bypass the prefix cache, and 0 is no less work; either field alone is fine."""
    with pytest.raises(UnsupportedParameter):
        draft(COMPLETIONS, echo=True, logprobs=count)
    assert (
        sent(call(COMPLETIONS, echo=True))["echo"] is True
        and sent(call(COMPLETIONS, logprobs=count))["logprobs"] == count
    )


@pytest.mark.parametrize("field", ["suffix", "prompt_embeds", "prompt_logprobs"])
def test_what_the_models_cannot_or_must_not_do_is_refused(field: str) -> None:
    """By name, with its reason."""
    with pytest.raises(UnsupportedParameter, match=f"Unsupported parameter: '{field}'"):
        draft(COMPLETIONS, **{field: "x"})


def test_stream_options_need_a_stream() -> None:
    """As in chat."""
    with pytest.raises(InvalidRequest, match="only allowed when 'stream' is enabled"):
        draft(COMPLETIONS, stream_options={"include_usage": True})
