"""The official `openai` package works against the running stack, unchanged."""

import json
import re
import subprocess

import openai
import pytest

from tests.stack.conftest import SMOLLM2
from tests.stack.running import Stack

QUESTION = [{"role": "user", "content": "Name the capital of France."}]


def test_the_banner_gives_a_curl_line_that_works(stack: Stack) -> None:
    """What `serving up` prints can be pasted into a shell and answers Paris."""
    lines = stack.banner().split("curl ", 1)[1].split("\n\n")[0]
    printed = subprocess.run(["bash", "-c", f"curl -sS {lines}"], capture_output=True, text=True, check=True).stdout
    assert "Paris" in printed


def test_chat(client: openai.OpenAI) -> None:
    """A question gets its answer, with its usage."""
    answer = client.chat.completions.create(model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=32)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_an_alias_answers_as_the_model_it_names(client: openai.OpenAI) -> None:
    """Code written for gpt-4o runs as it is; the answer says which model it was."""
    answer = client.chat.completions.create(model="gpt-4o", messages=QUESTION, temperature=0, max_tokens=32)
    assert "Paris" in (answer.choices[0].message.content or "") and answer.model == SMOLLM2


def test_streaming_without_usage_shows_none(client: openai.OpenAI) -> None:
    """Usage that the client did not ask for is in no chunk, and every chunk has a choice to index."""
    chunks = list(
        client.chat.completions.create(model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=32, stream=True)
    )
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


def test_streaming_with_usage_ends_with_it(client: openai.OpenAI) -> None:
    """Usage that the client asked for comes once, in a last chunk without choices, as at OpenAI."""
    *chunks, last = client.chat.completions.create(
        model=SMOLLM2,
        messages=QUESTION,
        temperature=0,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert last.choices == [] and last.usage and last.usage.completion_tokens > 0
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_log_probabilities(client: openai.OpenAI) -> None:
    """They come with every token, the likeliest first, on a machine without a compiler too."""
    answer = client.chat.completions.create(
        model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.content and len(logprobs.content) == 4
    assert all(it.token == it.top_logprobs[0].token and it.logprob <= 0 for it in logprobs.content)


def test_completions(client: openai.OpenAI) -> None:
    """The older text completion, whole and streamed, says the same."""
    arguments = {"model": SMOLLM2, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**arguments).choices[0].text
    streamed = client.completions.create(**arguments, stream=True)
    assert "Paris" in whole and "".join(chunk.choices[0].text for chunk in streamed) == whole


def test_responses(client: openai.OpenAI) -> None:
    """The Responses API, whole and streamed, says the same; nothing is stored."""
    question = {"model": SMOLLM2, "input": "Name the capital of France.", "temperature": 0, "max_output_tokens": 32}
    whole = client.responses.create(**question)
    events = list(client.responses.create(**question, stream=True))
    assert "Paris" in whole.output_text
    assert events[-1].type == "response.completed" and events[-1].response.output_text == whole.output_text


def test_models(client: openai.OpenAI) -> None:
    """The list holds what answers: the model and its aliases."""
    assert {model.id for model in client.models.list()} == {SMOLLM2, "gpt-4o", "claude-sonnet"}
    assert client.models.retrieve(SMOLLM2).id == SMOLLM2


def test_length_is_a_finish_reason(client: openai.OpenAI) -> None:
    """A cut answer says so and is billed to the token."""
    answer = client.chat.completions.create(model=SMOLLM2, messages=QUESTION, temperature=0, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage and answer.usage.completion_tokens == 2


def test_structured_output_of_an_untrained_schema(client: openai.OpenAI) -> None:
    """A JSON schema constrains what this model would never say by itself."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "certain": {"type": "boolean"}},
        "required": ["city", "certain"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=SMOLLM2,
        messages=QUESTION,
        temperature=0,
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "capital", "schema": schema, "strict": True}},
    )

    document = json.loads(answer.choices[0].message.content or "")
    assert document["city"] in ("Paris", "Rome") and isinstance(document["certain"], bool)


def test_a_recursive_schema_is_kept(client: openai.OpenAI) -> None:
    """`{"$ref": "#"}` below a property is how OpenAI's guide writes a tree."""
    children = {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}
    node = {"type": "object", "properties": {"depth": {"enum": [1, 2]}, "children": children}}
    schema = node | {"required": ["depth", "children"], "additionalProperties": False}
    answer = client.chat.completions.create(
        model=SMOLLM2,
        messages=QUESTION,
        temperature=0,
        max_tokens=48,
        response_format={"type": "json_schema", "json_schema": {"name": "tree", "schema": schema, "strict": True}},
    )
    # A model this small may not come to an end; as far as it got, it is such a tree.
    assert re.match(r'\s*{\s*"depth"\s*:\s*[12]\s*,\s*"children"\s*:\s*\[', answer.choices[0].message.content or "")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up_population"}}])
def test_a_forced_tool_call_is_valid(client: openai.OpenAI, choice: object) -> None:
    """`required` and a named choice give a call of that tool, with arguments that fit its schema."""

    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "look_up_population", "parameters": parameters}}
    answer = client.chat.completions.create(
        model=SMOLLM2, messages=QUESTION, tools=[tool], tool_choice=choice, temperature=0, max_tokens=128
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look_up_population"
    assert set(json.loads(call.function.arguments)) == {"city"}


def test_errors_are_openais_own_classes(stack: Stack, client: openai.OpenAI) -> None:
    """A wrong key, an unknown model, an unknown field and a long prompt raise what they raise at OpenAI."""
    stranger = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="sk-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        stranger.models.list()
    assert wrong_key.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as unknown_model:
        client.chat.completions.create(model="gpt-99", messages=QUESTION)
    assert unknown_model.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unknown_field:
        client.chat.completions.create(model=SMOLLM2, messages=QUESTION, extra_body={"no_such_field": 1})
    assert unknown_field.value.code == "unknown_parameter" and unknown_field.value.param == "no_such_field"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=SMOLLM2, messages=[{"role": "user", "content": "word " * 20000}])
    assert too_long.value.code == "context_length_exceeded"
