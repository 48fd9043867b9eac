"""Bodies: a conversation as the JSON body of each API that can ask it. Training and tests send the same."""

from __future__ import annotations

import json
from collections.abc import Iterator

from serving.engine.checkpoints.conversations import Assistant, Conversation, Tool, ToolCall, ToolResult, Turn, User

Body = dict[str, object]
_CALL_ID = "call_0"
_MAX_OUTPUT_TOKENS = 200


def chat_body(conversation: Conversation, model: str, *, stream: bool = False) -> Body:
    """For POST /v1/chat/completions."""
    body: Body = {
        "model": model,
        "messages": chat_messages(conversation),
        "temperature": 0,
        "max_completion_tokens": _MAX_OUTPUT_TOKENS,
        "stream": stream,
    }
    if conversation.tools:
        body["tools"] = chat_tools(conversation)
    if conversation.format:
        json_schema = {"name": conversation.format.name, "schema": conversation.format.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    if conversation.effort:
        body["reasoning_effort"] = conversation.effort
    return body


def responses_body(conversation: Conversation, model: str, *, stream: bool = False) -> Body:
    """For POST /v1/responses."""
    body: Body = {
        "model": model,
        "input": [item for turn in conversation.turns for item in _response_items(turn)],
        "temperature": 0,
        "max_output_tokens": _MAX_OUTPUT_TOKENS,
        "stream": stream,
        "store": False,
    }
    if conversation.instructions:
        body["instructions"] = conversation.instructions
    if conversation.tools:
        body["tools"] = [{"type": "function", "strict": False} | _function(tool) for tool in conversation.tools]
    if conversation.format:
        schema = {"type": "json_schema", "name": conversation.format.name, "schema": conversation.format.schema}
        body["text"] = {"format": schema | {"strict": True}}
    if conversation.effort:
        body["reasoning"] = {"effort": conversation.effort}
    return body


def messages_body(conversation: Conversation, model: str, *, stream: bool = False) -> Body:
    """For POST /v1/messages, Anthropic's shape."""
    body: Body = {
        "model": model,
        "messages": [_anthropic_message(turn) for turn in conversation.turns],
        "temperature": 0,
        "max_tokens": _MAX_OUTPUT_TOKENS,
        "stream": stream,
    }
    if conversation.instructions:
        body["system"] = conversation.instructions
    if conversation.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
            for tool in conversation.tools
        ]
    output: Body = {}
    if conversation.format:
        output["format"] = {"type": "json_schema", "schema": conversation.format.schema}
    if conversation.effort:
        output["effort"] = conversation.effort
    if output:
        body["output_config"] = output
    return body


def _function(tool: Tool) -> Body:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def chat_messages(conversation: Conversation) -> list[Body]:
    instructions: list[Body] = []
    if conversation.instructions:
        instructions = [{"role": "system", "content": conversation.instructions}]
    return [*instructions, *map(_chat_message, conversation.turns)]


def chat_tools(conversation: Conversation) -> list[Body]:
    return [{"type": "function", "function": _function(tool)} for tool in conversation.tools]


def _chat_message(turn: Turn) -> Body:
    match turn:
        case User(text):
            return {"role": "user", "content": text}
        case ToolResult(text):
            return {"role": "tool", "tool_call_id": _CALL_ID, "content": text}
        case Assistant(content, reasoning, call):
            message: Body = {"role": "assistant", "content": content}
            if reasoning:
                message["reasoning"] = reasoning
            if call:
                message["tool_calls"] = [_chat_tool_call(call)]
            return message


def _chat_tool_call(call: ToolCall) -> Body:
    return {"id": _CALL_ID, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _response_items(turn: Turn) -> Iterator[Body]:
    match turn:
        case User(text):
            yield {"role": "user", "content": text}
        case ToolResult(text):
            yield {"type": "function_call_output", "call_id": _CALL_ID, "output": text}
        case Assistant(content, reasoning, call):
            if reasoning:
                texts = [{"type": "reasoning_text", "text": reasoning}]
                yield {"type": "reasoning", "id": "rs_0", "summary": [], "content": texts}
            if call:
                yield {"type": "function_call", "call_id": _CALL_ID, "name": call.name, "arguments": call.arguments}
            if content:
                yield {"role": "assistant", "content": content}


def _anthropic_message(turn: Turn) -> Body:
    match turn:
        case User(text):
            return {"role": "user", "content": text}
        case ToolResult(text):
            result = {"type": "tool_result", "tool_use_id": _CALL_ID, "content": text}
            return {"role": "user", "content": [result]}
        case Assistant():
            return {"role": "assistant", "content": list(_anthropic_blocks(turn))}


def _anthropic_blocks(turn: Assistant) -> Iterator[Body]:
    if turn.reasoning:
        yield {"type": "thinking", "thinking": turn.reasoning, "signature": ""}
    if turn.content:
        yield {"type": "text", "text": turn.content}
    if call := turn.tool_call:
        yield {"type": "tool_use", "id": _CALL_ID, "name": call.name, "input": json.loads(call.arguments)}
