"""Whatever a gpt-oss emits, a client gets a well-formed answer: random weights write malformed Harmony nearly always."""

import json

import pytest

from tests.stack.conftest import RANDOM
from tests.stack.gpt_oss.conftest import DEFAULT_OUTPUT_TOKENS as DEFAULT
from tests.stack.http import bearer, call
from tests.stack.running import Stack

#: Requests of each kind; the seeds are fixed, so a failure can be repeated.
ROUNDS = 12
MARKERS = ("<|channel|>", "<|start|>", "<|end|>", "<|message|>", "<|call|>", "<|return|>", "<|constrain|>")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
QUESTION = [{"role": "user", "content": "Go on."}]


def chat(seed: int, stream: bool) -> dict[str, object]:
    body: dict[str, object] = {
        "model": RANDOM,
        "messages": QUESTION,
        "max_tokens": 40,
        "temperature": 1.0,
        "seed": seed,
        "stream": stream,
        # Harmony's markers become as likely as words: every second token is one.
        "logit_bias": {str(token): 12 for token in (200002, 200003, 200005, 200006, 200007, 200008, 200012)},
    }
    return body | ({"tools": [TOOL]} if seed % 2 else {})


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_whole_answer_is_well_formed(fuzzer: Stack, seed: int) -> None:
    """No 5xx, and no channel marker in what a person reads."""
    status, _, answer = call(fuzzer.url, "POST", "/v1/chat/completions", chat(seed, False), bearer(fuzzer.key))
    assert status == 200, answer
    message = json.loads(answer)["choices"][0]["message"]
    assert not any(marker in (message["content"] or "") for marker in MARKERS)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_stream_ends_well(fuzzer: Stack, seed: int) -> None:
    """Every event parses, none is an error, none holds a marker, one says why it ended, and [DONE] is last."""
    status, _, answer = call(fuzzer.url, "POST", "/v1/chat/completions", chat(seed, True), bearer(fuzzer.key))
    assert status == 200, answer
    *events, last = [event for event in answer.decode().split("\n\n") if event and not event.startswith(":")]
    assert last == "data: [DONE]"
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    content = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert not any(marker in content for marker in MARKERS)
    assert [choice["finish_reason"] for choice in choices if choice.get("finish_reason")] != []


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_responses_are_well_formed(fuzzer: Stack, seed: int, stream: bool) -> None:
    """The Responses API holds the same promise: no 5xx, and a stream that ends with its last event."""
    body = {"model": RANDOM, "input": f"Go on, {seed}.", "max_output_tokens": 40, "temperature": 1.0, "stream": stream}
    status, _, answer = call(fuzzer.url, "POST", "/v1/responses", body, bearer(fuzzer.key))
    assert status == 200, answer
    if stream:
        final = [event for event in answer.decode().split("\n\n") if event][-1]
        assert "response.completed" in final or "response.incomplete" in final, final[:300]
    else:
        assert json.loads(answer)["status"] in ("completed", "incomplete")


#: Tokens that end an answer, as good as forbidden: only a limit ends one.
ENDLESS = {str(token): -100 for token in (199999, 200002, 200012)}


@pytest.mark.parametrize(("asked", "generated"), [({}, DEFAULT), ({"max_tokens": DEFAULT * 2}, DEFAULT * 2)])
def test_a_call_without_a_limit_stops_at_the_models_default(
    fuzzer: Stack, asked: dict[str, int], generated: int
) -> None:
    """`length` says so; the client's own limit comes first, a larger one too."""
    body = {"model": RANDOM, "messages": QUESTION, "logit_bias": ENDLESS} | asked
    status, _, answer = call(fuzzer.url, "POST", "/v1/chat/completions", body, bearer(fuzzer.key))
    assert status == 200, answer
    whole = json.loads(answer)
    assert whole["choices"][0]["finish_reason"] == "length" and whole["usage"]["completion_tokens"] == generated


def test_a_models_default_never_refuses_a_long_prompt(fuzzer: Stack) -> None:
    """Where the prompt leaves less than the default, the engine cuts it to what is left instead of refusing."""
    card = json.loads(call(fuzzer.url, "GET", f"/v1/models/{RANDOM}", None, bearer(fuzzer.key))[2])
    assert card["default_output_tokens"] == DEFAULT
    empty = {"model": RANDOM, "messages": QUESTION, "logit_bias": ENDLESS, "max_tokens": 1}
    used = json.loads(call(fuzzer.url, "POST", "/v1/chat/completions", empty, bearer(fuzzer.key))[2])["usage"]
    words = card["max_model_len"] - used["prompt_tokens"] - DEFAULT // 2
    body = {"model": RANDOM, "messages": [{"role": "user", "content": "Go on." + " on" * words}], "logit_bias": ENDLESS}
    status, _, answer = call(fuzzer.url, "POST", "/v1/chat/completions", body, bearer(fuzzer.key))
    assert status == 200, answer
    usage = json.loads(answer)["usage"]
    assert usage["total_tokens"] == card["max_model_len"] and usage["completion_tokens"] < DEFAULT
