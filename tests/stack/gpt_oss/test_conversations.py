"""gpt-oss's own ways through the whole stack: reasoning, tools and structured output, compared by equality.

The model knows these conversations by heart (serving/engine/checkpoints/conversations.py), so equality is the rule:
real tokens, real Harmony, real parsers. Nothing here says anything about the quality of gpt-oss.
"""

import json
import re
from typing import Any

import anthropic
import openai
import pytest

from serving.engine.checkpoints import bodies
from serving.engine.checkpoints.conversations import (
    CONVERSATIONS,
    REASONED,
    REASONING_DROPPED,
    STRUCTURED,
    TOOL_ANSWERED,
    TOOL_CALLED,
    UNTRAINED_FORMAT,
    UNTRAINED_QUESTION,
    UNTRAINED_TOOL,
    Assistant,
    Conversation,
    ToolCall,
)
from tests.stack.conftest import TINY
from tests.stack.http import bearer, call
from tests.stack.running import Stack

each_conversation = pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda it: it.name)


def sent(stack: Stack, route: str, body: dict[str, Any]) -> Any:
    status, _, answer = call(stack.url, "POST", route, body, bearer(stack.key))
    assert status == 200, answer
    return json.loads(answer)


def _text(stack: Stack, route: str, body: dict[str, Any]) -> str:
    status, _, answer = call(stack.url, "POST", route, body, bearer(stack.key))
    assert status == 200, answer
    return answer.decode()


def as_said(message: Any) -> Assistant:
    """A chat message of the `openai` package as what the model said."""
    calls = message.tool_calls or []
    tool_call = ToolCall(calls[0].function.name, calls[0].function.arguments) if calls else None
    return Assistant(content=message.content, reasoning=getattr(message, "reasoning", None), tool_call=tool_call)


@each_conversation
def test_chat(tiny_client: openai.OpenAI, conversation: Conversation) -> None:
    """Reasoning, content and tool call come out apart from each other, exactly as trained."""
    answer = tiny_client.chat.completions.create(**bodies.chat_body(conversation, TINY))
    assert as_said(answer.choices[0].message) == conversation.answer
    assert answer.choices[0].finish_reason == ("tool_calls" if conversation.answer.tool_call else "stop")


@each_conversation
def test_chat_streamed(tiny_client: openai.OpenAI, conversation: Conversation) -> None:
    """The deltas add up to the same."""
    body = bodies.chat_body(conversation, TINY, stream=True)
    deltas = [chunk.choices[0].delta for chunk in tiny_client.chat.completions.create(**body)]
    functions = [call.function for delta in deltas for call in delta.tool_calls or []]
    name = "".join(function.name or "" for function in functions)
    arguments = "".join(function.arguments or "" for function in functions)
    said = Assistant(
        content="".join(delta.content or "" for delta in deltas) or None,
        reasoning="".join(getattr(delta, "reasoning", None) or "" for delta in deltas) or None,
        tool_call=ToolCall(name, arguments) if name else None,
    )
    assert said == conversation.answer


@each_conversation
def test_responses(tiny_client: openai.OpenAI, conversation: Conversation) -> None:
    """The Responses API gives the same as items, whole and in its stream's last event."""
    body = bodies.responses_body(conversation, TINY)
    whole = tiny_client.responses.create(**body)
    events = list(tiny_client.responses.create(**body | {"stream": True}))
    assert events[-1].type == "response.completed"
    for response in (whole, events[-1].response):
        calls = [item for item in response.output if item.type == "function_call"]
        reasoning = [part.text for item in response.output if item.type == "reasoning" for part in item.content or []]
        assert (
            Assistant(
                content=response.output_text or None,
                reasoning="".join(reasoning) or None,
                tool_call=ToolCall(calls[0].name, calls[0].arguments) if calls else None,
            )
            == conversation.answer
        )


@each_conversation
def test_messages(tiny: Stack, conversation: Conversation) -> None:
    """Anthropic's client gets the same as blocks, whole and streamed."""
    client = anthropic.Anthropic(base_url=tiny.url, api_key=tiny.key, max_retries=0)
    body = bodies.messages_body(conversation, TINY)
    # This package knows no temperature any more; the API does.
    body["extra_body"] = {"temperature": body.pop("temperature")}
    body.pop("stream")
    whole = client.messages.create(**body)
    with client.messages.stream(**body) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        blocks = {block.type: block for block in message.content}
        tool = blocks.get("tool_use")
        assert (
            Assistant(
                content=blocks["text"].text if "text" in blocks else None,
                reasoning=blocks["thinking"].thinking if "thinking" in blocks else None,
                tool_call=ToolCall(tool.name, json.dumps(tool.input)) if tool else None,
            )
            == conversation.answer
        )
        assert message.stop_reason == ("tool_use" if conversation.answer.tool_call else "end_turn")


def test_a_multi_turn_tool_call_keeps_its_reasoning(tiny_client: openai.OpenAI) -> None:
    """What the client got is what it sends back: the reasoning before a tool call is still there after its result."""
    messages = bodies.chat_messages(TOOL_CALLED)
    arguments = {"model": TINY, "temperature": 0, "tools": bodies.chat_tools(TOOL_CALLED)}
    first = tiny_client.chat.completions.create(messages=messages, **arguments).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "18 degrees, sunny"}
    messages += [first.model_dump(exclude_none=True), result]
    second = tiny_client.chat.completions.create(messages=messages, **arguments).choices[0].message
    assert as_said(second) == TOOL_ANSWERED.answer


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_survives_a_client_that_drops_it(tiny: Stack, stream: bool) -> None:
    """It sends the call and its result alone; what the model thought between is put back, on each route."""
    chat, messages = "/v1/chat/completions", "/v1/messages"
    body = bodies.chat_body(TOOL_CALLED, TINY) | {"stream": stream}
    call_id = re.findall(r'"id": ?"(chatcmpl-tool-[0-9a-f]+)"', _text(tiny, chat, body))[0]
    turns = bodies.chat_messages(REASONING_DROPPED)
    turns = json.loads(json.dumps(turns).replace(str(turns[-1]["tool_call_id"]), call_id))
    answer = sent(tiny, chat, bodies.chat_body(REASONING_DROPPED, TINY) | {"messages": turns})
    assert answer["choices"][0]["message"]["content"] == TOOL_ANSWERED.answer.content

    body = bodies.messages_body(TOOL_CALLED, TINY) | {"stream": stream}
    call_id = re.findall(r'"id": ?"(chatcmpl-tool-[0-9a-f]+)"', _text(tiny, messages, body))[0]
    dropped: dict[str, Any] = bodies.messages_body(REASONING_DROPPED, TINY)
    used = next(block["id"] for block in dropped["messages"][1]["content"] if block["type"] == "tool_use")
    answer = sent(tiny, messages, json.loads(json.dumps(dropped).replace(used, call_id)))
    assert [block.get("text") for block in answer["content"]] == [TOOL_ANSWERED.answer.content]


def test_reasoning_is_carried_sealed_or_by_reference(tiny_client: openai.OpenAI) -> None:
    """By clients of the Responses API, which send no text of it."""
    body: dict[str, Any] = bodies.responses_body(TOOL_CALLED, TINY)
    first = tiny_client.responses.create(**body, include=["reasoning.encrypted_content"])
    thought, called = first.output
    call_item = {"type": "function_call", "call_id": called.call_id, "name": called.name, "arguments": called.arguments}
    result = {"type": "function_call_output", "call_id": called.call_id, "output": "18 degrees, sunny"}
    sealed = {"type": "reasoning", "id": "rs_x", "summary": [], "encrypted_content": thought.encrypted_content}
    ways: list[list[object]] = [[sealed], [{"type": "item_reference", "id": thought.id}], []]
    for carried in ways:
        again = body | {"input": [*body["input"], *carried, call_item, result]}
        assert tiny_client.responses.create(**again).output_text == TOOL_ANSWERED.answer.content


def test_structured_output_of_an_untrained_schema(tiny_client: openai.OpenAI) -> None:
    """Beyond memory, constrained decoding alone makes the answer fit the schema."""
    schema = {"name": UNTRAINED_FORMAT.name, "schema": UNTRAINED_FORMAT.schema, "strict": True}
    answer = tiny_client.chat.completions.create(
        model=TINY,
        messages=[{"role": "user", "content": UNTRAINED_QUESTION}],
        response_format={"type": "json_schema", "json_schema": schema},
        temperature=0,
        max_completion_tokens=200,
    )
    document = json.loads(answer.choices[0].message.content)
    assert document["verdict"] in ("accepted", "rejected") and 0 <= document["score"] <= 9


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": UNTRAINED_TOOL.name}}], ids=["required", "named"]
)
def test_a_forced_call_of_an_untrained_tool(tiny_client: openai.OpenAI, choice: object) -> None:
    """`required` and a named choice give that tool's name and arguments that fit its schema."""
    function = {
        "name": UNTRAINED_TOOL.name,
        "description": UNTRAINED_TOOL.description,
        "parameters": UNTRAINED_TOOL.parameters,
    }
    answer = tiny_client.chat.completions.create(
        model=TINY,
        messages=[{"role": "user", "content": UNTRAINED_QUESTION}],
        tools=[{"type": "function", "function": function}],
        tool_choice=choice,
        temperature=0,
        max_completion_tokens=200,
    )
    (tool_call,) = answer.choices[0].message.tool_calls
    arguments = json.loads(tool_call.function.arguments)
    assert tool_call.function.name == UNTRAINED_TOOL.name
    assert arguments["room"] in ("kitchen", "cellar") and 0 <= arguments["level"] <= 9


def test_content_is_null_when_reasoning_used_up_the_limit(tiny_client: openai.OpenAI) -> None:
    """`max_tokens` includes reasoning: a small limit gives null content and says `length`, as at OpenAI."""
    body = bodies.chat_body(REASONED, TINY) | {"max_completion_tokens": 4}
    answer = tiny_client.chat.completions.create(**body)
    assert answer.choices[0].message.content is None and answer.choices[0].finish_reason == "length"


def test_curl_reads_the_same(tiny: Stack) -> None:
    """Without any client library: plain JSON over HTTP."""
    message = sent(tiny, "/v1/chat/completions", bodies.chat_body(STRUCTURED, TINY))["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (STRUCTURED.answer.reasoning, STRUCTURED.answer.content)
