"""What clients of gpt-oss see is their API's, whole and streamed alike: stop strings, cut answers, keys, refusals.

Real tokens and real Harmony: the engine's own search would stop at reasoning, at headers and in the middle of calls.
"""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from serving.engine.checkpoints import bodies
from serving.engine.checkpoints.conversations import PLAIN, REASONED, STRUCTURED, TOOL_CALLED, Conversation, User
from tests.stack.conftest import TINY
from tests.stack.http import bearer, call
from tests.stack.running import Stack

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
ROUTES = (CHAT, RESPONSES, MESSAGES)
BODIES = {CHAT: bodies.chat_body, RESPONSES: bodies.responses_body, MESSAGES: bodies.messages_body}
STOP = {CHAT: "stop", RESPONSES: "stop", MESSAGES: "stop_sequences"}
LIMIT = {CHAT: "max_completion_tokens", RESPONSES: "max_output_tokens", MESSAGES: "max_tokens"}
CUT = {CHAT: "length", RESPONSES: "max_output_tokens", MESSAGES: "max_tokens"}

each_route = pytest.mark.parametrize("route", ROUTES)


@dataclass(frozen=True)
class Said:
    """What an answer comes to, in any of the APIs."""

    content: str
    reasoning: str
    arguments: str | None
    ending: str | None


def asked(stack: Stack, route: str, body: dict[str, Any], *, is_streamed: bool) -> tuple[int, bytes, str]:
    """Status, body and request id."""
    status, headers, answer = call(stack.url, "POST", route, body | {"stream": is_streamed}, bearer(stack.key))
    return status, answer, headers["x-request-id"]


def said(stack: Stack, route: str, body: dict[str, Any], *, is_streamed: bool) -> Said:
    status, answer, _ = asked(stack, route, body, is_streamed=is_streamed)
    assert status == 200, answer
    events = [json.loads(line[6:]) for line in answer.decode().split("\n") if line.startswith("data: {")]
    if route == CHAT:
        return of_chat(events) if is_streamed else of_chat_choice(json.loads(answer)["choices"][0])
    if route == RESPONSES:
        return of_response(events[-1]["response"] if is_streamed else json.loads(answer))
    return of_message(events) if is_streamed else of_blocks(json.loads(answer))


def of_chat_choice(choice: dict[str, Any]) -> Said:
    message = choice["message"]
    calls = message.get("tool_calls") or []
    arguments = calls[0]["function"]["arguments"] if calls else None
    return Said(message["content"] or "", message["reasoning"] or "", arguments, choice["finish_reason"])


def of_chat(chunks: list[dict[str, Any]]) -> Said:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    deltas = [choice["delta"] for choice in choices]
    calls = [it["function"].get("arguments") or "" for delta in deltas for it in delta.get("tool_calls") or []]
    return Said(
        content="".join(delta.get("content") or "" for delta in deltas),
        reasoning="".join(delta.get("reasoning") or "" for delta in deltas),
        arguments="".join(calls) if calls else None,
        ending=choices[-1]["finish_reason"],
    )


def of_response(response: dict[str, Any]) -> Said:
    texts = {"message": "", "reasoning": ""}
    calls = [item["arguments"] for item in response["output"] if item["type"] == "function_call"]
    for item in response["output"]:
        if item["type"] in texts:
            texts[item["type"]] += "".join(part["text"] for part in item["content"] or ())
    ending = (response["incomplete_details"] or {"reason": response["status"]})["reason"]
    return Said(texts["message"], texts["reasoning"], calls[0] if calls else None, ending)


def of_message(events: list[dict[str, Any]]) -> Said:
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    (ending,) = [event["delta"] for event in events if event["type"] == "message_delta"]
    calls = [delta["partial_json"] for delta in deltas if "partial_json" in delta]
    return Said(
        content="".join(delta.get("text", "") for delta in deltas),
        reasoning="".join(delta.get("thinking", "") for delta in deltas),
        arguments="".join(calls) if calls else None,
        ending=ending["stop_sequence"] or ending["stop_reason"],
    )


def of_blocks(message: dict[str, Any]) -> Said:
    blocks = message["content"]
    calls = [json.dumps(block["input"]) for block in blocks if block["type"] == "tool_use"]
    return Said(
        content="".join(block.get("text", "") for block in blocks),
        reasoning="".join(block.get("thinking", "") for block in blocks),
        arguments=calls[0] if calls else None,
        ending=message["stop_sequence"] or message["stop_reason"],
    )


DONE = {CHAT: "stop", RESPONSES: "completed", MESSAGES: "end_turn"}
CALLED = {CHAT: "tool_calls", RESPONSES: "completed", MESSAGES: "tool_use"}


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@each_route
@pytest.mark.parametrize(
    ("conversation", "stop", "content"),
    [
        (REASONED, "42", None),
        (REASONED, "assistant", None),
        (REASONED, "final", None),
        (REASONED, "analysis", None),
        (REASONED, "forty", "The sum is "),
        (REASONED, "m is f", "The su"),
        (TOOL_CALLED, "Paris", None),
        (TOOL_CALLED, "get_weather", None),
        (STRUCTURED, "Paris", '{"city": "'),
    ],
)
def test_a_stop_string_ends_the_text_and_nothing_else(
    tiny: Stack, route: str, conversation: Conversation, stop: str, content: str | None, is_streamed: bool
) -> None:
    """Reasoning, headers and calls come whole; the match and all after it is cut."""
    answer = said(tiny, route, BODIES[route](conversation, TINY) | {STOP[route]: [stop]}, is_streamed=is_streamed)
    whole = conversation.answer
    assert answer.reasoning == (whole.reasoning or "")
    assert answer.content == (whole.content or "" if content is None else content)
    assert answer.arguments == (whole.tool_call.arguments if whole.tool_call else None)
    if content is not None and route == MESSAGES:
        assert answer.ending == stop
    else:
        assert answer.ending == (CALLED if whole.tool_call else DONE)[route]


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@each_route
@pytest.mark.parametrize("limit", [1, 3, 8, 12, 16, 20, 23, 24, 26, 29, 30])
def test_an_answer_that_is_cut_says_so(tiny: Stack, route: str, limit: int, is_streamed: bool) -> None:
    """At any token: a 200 that names the limit, no header for a text, no other call than the one that was begun, all of it billed."""
    body = BODIES[route](TOOL_CALLED, TINY) | {LIMIT[route]: limit}
    answer = said(tiny, route, body, is_streamed=is_streamed)
    assert answer.ending == CUT[route] and answer.content == ""
    assert TOOL_CALLED.answer.reasoning is not None and TOOL_CALLED.answer.reasoning.startswith(answer.reasoning)
    assert TOOL_CALLED.answer.tool_call is not None
    assert TOOL_CALLED.answer.tool_call.arguments.startswith(answer.arguments or "")
    _, _, request_id = asked(tiny, route, body, is_streamed=is_streamed)
    row = tiny.row(request_id)
    assert (row.completion_tokens, row.estimated_by, row.outcome) == (limit, None, "ok")


@pytest.mark.parametrize("limit", [1, 6, 12, 26])
def test_a_streams_last_event_is_named_after_the_response(tiny: Stack, limit: int) -> None:
    """`response.incomplete`, and the last item has the same status in its own event."""
    body = bodies.responses_body(TOOL_CALLED, TINY) | {"max_output_tokens": limit}
    _, answer, _ = asked(tiny, RESPONSES, body, is_streamed=True)
    events = [json.loads(line[6:]) for line in answer.decode().split("\n") if line.startswith("data: {")]
    assert events[-1]["type"] == "response.incomplete" and events[-1]["response"]["status"] == "incomplete"
    done = [event["item"]["status"] for event in events if event["type"] == "response.output_item.done"]
    assert done == [item["status"] for item in events[-1]["response"]["output"]]


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_log_probabilities_spell_the_content(tiny: Stack, is_streamed: bool) -> None:
    """No header, no marker and no reasoning has an entry."""
    for conversation in (PLAIN, REASONED):
        body = bodies.chat_body(conversation, TINY) | {"logprobs": True, "top_logprobs": 1}
        _, answer, _ = asked(tiny, CHAT, body, is_streamed=is_streamed)
        if is_streamed:
            chunks = [json.loads(line[6:]) for line in answer.decode().split("\n") if line.startswith("data: {")]
            entries = [
                entry
                for chunk in chunks
                for choice in chunk["choices"]
                for entry in (choice["logprobs"] or {"content": []})["content"]
            ]
        else:
            entries = json.loads(answer)["choices"][0]["logprobs"]["content"]
        assert "".join(entry["token"] for entry in entries) == conversation.answer.content


def test_no_key_is_the_engines_own(tiny: Stack) -> None:
    """Answers have the keys of the official clients' types, and `reasoning` in chat."""
    _, chat, _ = asked(tiny, CHAT, bodies.chat_body(REASONED, TINY), is_streamed=False)
    _, response, _ = asked(tiny, RESPONSES, bodies.responses_body(REASONED, TINY), is_streamed=False)
    assert unknown(ChatCompletion, json.loads(chat)) == {"reasoning"}
    assert unknown(Response, json.loads(response)) == set()


def unknown(kind: Any, document: dict[str, Any]) -> set[str]:
    """Keys at any depth that an official type does not declare."""
    found = {key for key in document if key not in kind.model_fields}
    read = kind.model_validate(document)
    return found | {key for model in inner(read) for key in model.model_extra or ()}


def inner(model: Any) -> list[Any]:
    """All models inside a model."""
    found = []
    for value in vars(model).values():
        for each in value if isinstance(value, list) else [value]:
            if hasattr(each, "model_extra"):
                found += [each, *inner(each)]
    return found


def test_a_response_repeats_what_was_sent(tiny: Stack) -> None:
    """Markers in a text included, which the engine would not repeat."""
    sent = {
        "instructions": "Never write <|end|>.",
        "metadata": {"note": "uses <|call|>"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
    }
    status, answer, _ = asked(tiny, RESPONSES, bodies.responses_body(PLAIN, TINY) | sent, is_streamed=False)
    assert status == 200 and {name: json.loads(answer)[name] for name in sent} == sent


@each_route
def test_a_prompt_that_is_too_long_is_said_in_the_apis_words(tiny: Stack, route: str) -> None:
    """The same whole and streamed."""
    long = Conversation(name="long", turns=(User("word " * 9000),), answer=PLAIN.answer)
    answers = [asked(tiny, route, BODIES[route](long, TINY), is_streamed=is_streamed) for is_streamed in (False, True)]
    for status, answer, _ in answers:
        words = (
            "prompt is too long: 9068 tokens > 4096"
            if route == MESSAGES
            else "maximum context length is 4096 tokens. However,"
        )
        assert status == 400 and words in json.loads(answer)["error"]["message"]
