"""An engine that guesses tokens ahead says what the model says: every token, every field, every schema, through the whole stack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import openai
import pytest

from tests.long.test_parallel import Greedy, greedy, tokenized
from tests.stack.conftest import SMOLLM2, TINY
from tests.stack.http import bearer, call
from tests.stack.running import Stack, running
from tests.stack.test_engine_metrics import GUESSING, require_metrics

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

#: Texts that repeat themselves, so that there is something to guess, and one that does not.
PROMPTS = (
    "one two three four one two three four one two three",
    "The cat sat on the mat. The dog sat on the rug. The cat sat on the",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(a, b):\n    return",
    "What is the capital of France?",
)
OUTPUT_TOKENS = 64
#: A schema whose answer the grammar decides for the most part: where guesses meet it, they must give way.
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "steps": {"type": "array", "items": {"enum": ["one", "two"]}, "maxItems": 4}},
    "required": ["city", "steps"],
    "additionalProperties": False,
}  # fmt: skip
#: What a model of three conversations can end: where the grammar allows spaces, it says no more than those.
SHORT = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def speculating(model: str, **method: object) -> dict[str, str]:
    return {"SERVING_MODELS": json.dumps([{"name": model, "speculation": method}])}


def said(stack: Stack) -> list[Greedy]:
    return [greedy(stack, tokenized(stack, prompt), OUTPUT_TOKENS) for prompt in PROMPTS]


def streamed(client: openai.OpenAI, model: str) -> str:
    """A streamed chat of the same words, put together."""
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": PROMPTS[0]}], temperature=0, max_tokens=40, stream=True
    )
    return "".join(it.choices[0].delta.content or "" for it in stream if it.choices)


def structured(client: openai.OpenAI, model: str, schema: Mapping[str, object] = SCHEMA) -> str:
    """A whole chat that must fit the schema."""
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": 'Repeat: {"city": "Paris", "steps": ["one", "two", "one", "two"]}'}],
        temperature=0,
        max_tokens=200,
        response_format=form,
    )
    content = answer.choices[0].message.content
    assert content is not None and answer.choices[0].finish_reason == "stop", answer
    return str(content)


def asked(stack: Stack) -> tuple[list[list[int]], str, str]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0) as client:
        return [it.tokens for it in said(stack)], streamed(client, stack.model), structured(client, stack.model)


def test_guesses_by_repetition_change_no_token(tmp_path: Path) -> None:
    """Greedy, in float32: completions, a stream and a structured answer equal plain decoding, and the counters say how much was
    guessed right; the ledger bills what the engine counts."""
    with running(tmp_path / "plain", SMOLLM2) as stack:
        plain = asked(stack)
        assert not any("spec_decode" in it for it in stack.engine_metrics())
    with running(tmp_path / "guessing", SMOLLM2, speculating(SMOLLM2, method="ngram", tokens=3)) as stack:
        guessed = asked(stack)
        require_metrics(stack)
        types = {family.name: family.type for family in stack.metric_families()}
        counted = _counted(stack.engine_metrics())
        _refuse_bias(stack)
        stack.ledger_check()

    assert guessed == plain
    jsonschema.validate(json.loads(guessed[2]), SCHEMA)
    assert {types.get(metric.name.removesuffix("_total")) for metric in GUESSING} == {"counter"}
    drafts, drafted, accepted = counted
    assert 0 < accepted <= drafted <= 3 * drafts, counted
    print(
        f"\n{drafts:.0f} steps with guesses, {drafted:.0f} tokens guessed, {accepted:.0f} right ({accepted / drafted:.0%})"
    )


def _refuse_bias(stack: Stack) -> None:
    """vLLM takes no `logit_bias` with guesses, and says so."""
    biased = {"model": SMOLLM2, "messages": [{"role": "user", "content": "Hi"}], "logit_bias": {"100": 5}}
    status, _, answer = call(stack.url, "POST", "/v1/chat/completions", biased, bearer(stack.key))
    assert status == 400 and b"speculative decoding" in answer, answer


def _counted(metrics: Mapping[str, float]) -> tuple[float, float, float]:
    drafts, drafted, accepted = (metrics[metric.name] for metric in GUESSING)
    return drafts, drafted, accepted


def test_guesses_give_way_to_a_schema_behind_reasoning(tmp_path: Path) -> None:
    """gpt-oss: the grammar begins where reasoning ends, in the middle of what was guessed; the answer fits all the same."""
    with running(tmp_path, TINY, speculating(TINY, method="ngram", tokens=3)) as stack:
        with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0) as client:
            assert json.loads(structured(client, TINY, SHORT)) in ({"city": "Paris"}, {"city": "Rome"})
        assert _counted(stack.engine_metrics())[0] > 0
