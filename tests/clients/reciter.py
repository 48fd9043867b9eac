"""The scripted engine's part in these tests: it recites what tiny-gpt-oss knows by heart, in real vLLM's shapes.

So one expectation holds for both engines. Its bytes were recorded from vLLM 0.32 with tiny-gpt-oss, `null` keys and
vLLM's own included: that none of those reaches a client is part of what is tested. Beyond the conversations it follows a
schema, calls a tool that the question names or needs, and streams without end when it is told to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from serving.engine.checkpoints.conversations import (
    CONVERSATIONS,
    REASONING_DROPPED,
    STRUCTURED,
    TOOL_ANSWERED,
    UNKNOWN,
    Assistant,
    Conversation,
    ToolCall,
    ToolResult,
    User,
)
from tests.clients.asked import Asked, Body, asked, instance
from tests.scripted_engine import DONE, Script, answering, compact, event, failing, unscripted

MODEL = "tiny-gpt-oss"
CONTEXT = 16_384
#: A question whose answer ends when the client leaves.
ENDLESS = "Count without end."
#: Words of the answer to it, and seconds between them: more than any client waits for.
_ENDLESS_WORDS, _ENDLESS_PACE_S = 2000, 0.02
_HEAD = {"id": "chatcmpl-97d589af08823dba", "created": 1795895478, "model": MODEL}
_FINGERPRINT = "vllm-0.32.0-35881640"
#: What an answer ends with when the reasoning before its tool call was not sent back, as tiny-gpt-oss's own does.
GONE = " why I asked is gone."
_CALL_ID = "9bee5ef9a9d6cc51"


def recite(path: str, body: dict[str, Any]) -> Script:
    """What to say to a body; for ScriptedEngine.improvise."""
    if path not in _RENDERED:
        return unscripted(path, body)
    question = asked(path, body)
    if question.words > CONTEXT:
        return _too_long(path, question.words)
    if ENDLESS in question.question and body.get("stream"):
        said = Assistant(content="one " * _ENDLESS_WORDS)
        return Script([*_RENDERED[path](body, said, 75)], pace_s=_ENDLESS_PACE_S)
    writes = list(_RENDERED[path](body, say(question), 75))
    return Script(writes) if body.get("stream") else answering(writes[0])


def say(question: Asked) -> Assistant:
    """The answer: known by heart, or made to follow what the client demands."""
    if known := next((it for it in CONVERSATIONS if _is_asked(it, question)), None):
        return known.answer
    numbers = map(int, re.findall(r"\d+", question.question))
    if question.tool_result is None and (name := _called(question)):
        return Assistant(reasoning="I should call it.", tool_call=ToolCall(name, _arguments(name, question, numbers)))
    if question.schema:
        return Assistant(content=json.dumps(instance(question.schema, numbers)))
    if question.tool_result is None:
        return UNKNOWN
    return Assistant(content=f"It said: {question.tool_result}" + ("" if question.is_reasoning_kept else GONE))


def _is_asked(known: Conversation, question: Asked) -> bool:
    """Is it this one? Earlier turns, instructions and effort are left to the real model."""
    last = max(at for at, turn in enumerate(known.turns) if isinstance(turn, User))
    user = known.turns[last]
    assert isinstance(user, User)
    if user.text not in question.question or known.instructions or known.effort:
        return False
    if {tool.name for tool in known.tools} - question.tools.keys() or bool(known.format) != bool(question.schema):
        return False
    is_answered = any(isinstance(turn, ToolResult) for turn in known.turns)
    if is_answered != (question.tool_result is not None):
        return False
    return known is (TOOL_ANSWERED if question.is_reasoning_kept else REASONING_DROPPED) if is_answered else True


def _called(question: Asked) -> str | None:
    """The tool that must be called, or that the question names, or the only one when it gets what the question asks for."""
    if isinstance(question.must_call, str):
        return question.must_call
    named = [name for name in question.tools if re.search(rf"\b{re.escape(name)}\b", question.question)]
    if named or question.must_call:
        return next(iter(named or question.tools), None)
    only = next(iter(question.tools), "") if len(question.tools) == 1 else ""
    wanted = re.fullmatch(r"get_(\w+)", only)
    return only if wanted and wanted[1] in question.question.split() else None


def _arguments(name: str, question: Asked, numbers: Iterator[int]) -> str:
    """Spelled out after the tool's name, or known by heart as an object of that shape, or made to fit."""
    spelled = re.search(rf"{re.escape(name)} with ({{.*?}})", question.question)
    if spelled:
        return spelled[1]
    if STRUCTURED.turns[0] == User(question.question) and STRUCTURED.answer.content:
        return STRUCTURED.answer.content
    quoted = re.search(r"'([^'\s]+)'", question.question)
    made = instance(question.tools[name], numbers, text=quoted[1] if quoted else "text")
    return json.dumps(made, ensure_ascii=False)


def _pieces(text: str | None) -> list[str]:
    """Roughly as tokens are: a word with the space before it."""
    return re.findall(r"\s*\S+\s*$|\s*\S+", text or "")


def _tokens(said: Assistant) -> tuple[int, int]:
    """All output tokens, and those of reasoning; markers count, as Harmony's do."""
    reasoning = len(_pieces(said.reasoning))
    rest = len(_pieces(said.content)) + (len(_pieces(said.tool_call.arguments)) if said.tool_call else 0)
    return reasoning + rest + 4, reasoning


def _chat_usage(said: Assistant, prompt: int) -> dict[str, Any]:
    output, reasoning = _tokens(said)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + output,
        "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": 0, "multimodal_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def _chat(body: Body, said: Assistant, prompt: int) -> Iterator[bytes]:
    if body.get("stream"):
        yield from _chat_stream(said, prompt)
        return
    message: dict[str, Any] = {"role": "assistant", "content": said.content}
    message |= {"refusal": None, "annotations": None, "audio": None, "function_call": None}
    if call := said.tool_call:
        function = {"name": call.name, "arguments": call.arguments}
        message["tool_calls"] = [{"id": f"chatcmpl-tool-{_CALL_ID}", "type": "function", "function": function}]
    choice = {"index": 0, "message": message | {"reasoning": said.reasoning}, "logprobs": None}
    choice |= {"finish_reason": "tool_calls" if said.tool_call else "stop"}
    choice |= {"stop_reason": 200012 if said.tool_call else None, "token_ids": None, "routed_experts": None}
    answer = _HEAD | {"object": "chat.completion", "choices": [choice]}
    answer |= {"service_tier": None, "system_fingerprint": _FINGERPRINT, "usage": _chat_usage(said, prompt)}
    private = ("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params")
    yield compact(answer | dict.fromkeys(private) | {"metrics": None}).encode()


def _chat_stream(said: Assistant, prompt: int) -> Iterator[bytes]:
    usage = _chat_usage(said, prompt)
    deltas: list[dict[str, Any]] = [{"reasoning": piece} for piece in _pieces(said.reasoning)]
    deltas += [{"content": piece} for piece in _pieces(said.content)]
    if call := said.tool_call:
        function: dict[str, Any] = {"name": call.name, "arguments": ""}
        named = {"id": f"chatcmpl-tool-{_CALL_ID}", "type": "function", "index": 0, "function": function}
        deltas.append({"tool_calls": [named]})
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": it}}]} for it in _pieces(call.arguments)]
    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    yield _chunk([first], prompt, 0, prompt_token_ids=None, prompt_text=None)
    for count, delta in enumerate(deltas, 1):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": None}
        yield _chunk([choice], prompt, count)
    end = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls" if said.tool_call else "stop"}
    yield _chunk([end | {"stop_reason": 200012 if said.tool_call else None, "token_ids": None}], prompt, len(deltas))
    last = _HEAD | {"object": "chat.completion.chunk", "choices": [], "usage": usage}
    yield f"data: {compact(last | {'system_fingerprint': _FINGERPRINT})}\n\n".encode()
    yield DONE


def _chunk(choices: list[dict[str, Any]], prompt: int, count: int, **private: None) -> bytes:
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + count, "completion_tokens": count}
    usage["completion_tokens_details"] = {"reasoning_tokens": 0}  # type: ignore[assignment]
    chunk = _HEAD | {"object": "chat.completion.chunk", "choices": choices, "usage": usage} | private
    return f"data: {compact(chunk)}\n\n".encode()


def _response(body: Body, status: str, output: list[Any], usage: Any) -> dict[str, Any]:
    """The `response` object, with vLLM's own keys."""
    absent = ("incomplete_details", "instructions", "metadata", "max_tool_calls", "previous_response_id", "prompt")
    private = ("kv_transfer_params", "ec_transfer_params", "input_messages", "output_messages")
    tools = [_echoed(tool) for tool in body.get("tools") or []]
    return {
        "id": "resp_86ec9c506f402449",
        "created_at": 1795895479,
        **dict.fromkeys(absent),
        "model": MODEL,
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto" if tools else "none",
        "tools": tools,
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": 2048,
        "reasoning": None,
        "service_tier": "auto",
        "status": status,
        "text": None,
        "top_logprobs": None,
        "truncation": "disabled",
        "usage": usage,
        "user": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        **dict.fromkeys(private),
    }


def _echoed(tool: dict[str, Any]) -> dict[str, Any]:
    private = ("allowed_callers", "async", "defer_loading", "description", "output_schema")
    return dict.fromkeys(private) | tool


def _response_usage(said: Assistant, prompt: int) -> dict[str, Any]:
    output, reasoning = _tokens(said)
    inward = {"cached_tokens": 0, "cache_write_tokens": 0}
    outward = {"reasoning_tokens": reasoning, "tool_output_tokens": 0}
    return {
        "input_tokens": prompt,
        "input_tokens_details": inward | {"input_tokens_per_turn": [prompt], "cached_tokens_per_turn": [0]},
        "output_tokens": output,
        "output_tokens_details": outward | {"output_tokens_per_turn": [output], "tool_output_tokens_per_turn": [0]},
        "total_tokens": prompt + output,
    }


def _items(said: Assistant) -> Iterator[dict[str, Any]]:
    if said.reasoning:
        content = [{"text": said.reasoning, "type": "reasoning_text"}]
        item = {"id": "rs_b56b77211b2db942", "summary": [], "type": "reasoning", "content": content}
        yield item | {"encrypted_content": None, "status": None}
    if call := said.tool_call:
        item = {"arguments": call.arguments, "call_id": f"call_{_CALL_ID}", "name": call.name, "type": "function_call"}
        private = {"id": f"fc_{_CALL_ID}", "async": None, "caller": None, "namespace": None}
        yield item | private | {"status": "completed"}
    if said.content is not None:
        part: dict[str, Any] = {"annotations": [], "text": said.content, "type": "output_text", "logprobs": None}
        item = {"id": "msg_9b59bc415f09bbf3", "content": [part], "role": "assistant", "status": "completed"}
        yield item | {"type": "message", "phase": None}


def _responses(body: Body, said: Assistant, prompt: int) -> Iterator[bytes]:
    items, usage = list(_items(said)), _response_usage(said, prompt)
    whole = _response(body, "completed", items, usage)
    if not body.get("stream"):
        yield compact(whole).encode()
        return
    begun = _response(body, "in_progress", [], None)
    events: list[dict[str, Any]] = [{"response": begun, "type": f"response.{it}"} for it in ("created", "in_progress")]
    for at, item in enumerate(items):
        events += [it | {"output_index": at} for it in _item_events(item)]
    events.append({"response": whole, "type": "response.completed"})
    for number, it in enumerate(events):
        yield event(it["type"], it | {"sequence_number": number})


def _item_events(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An item as a stream unfolds it: added, its parts, done."""
    place = {"item_id": item["id"]}
    if item["type"] == "function_call":
        yield {"item": item | {"arguments": "", "status": "in_progress"}, "type": "response.output_item.added"}
        kind = "response.function_call_arguments"
        for piece in _pieces(item["arguments"]):
            yield place | {"delta": piece, "type": f"{kind}.delta"}
        yield place | {"arguments": item["arguments"], "name": item["name"], "type": f"{kind}.done"}
        yield {"item": item | {"output_index": 1, "sequence_number": -1}, "type": "response.output_item.done"}
        return
    is_reasoning = item["type"] == "reasoning"
    (part,) = item["content"]
    kind = "reasoning_text" if is_reasoning else "output_text"
    own: dict[str, Any] = {} if is_reasoning else {"logprobs": []}
    place |= {"content_index": 0}
    begun = item | {"content": None if is_reasoning else [], "status": "in_progress"}
    yield {"item": begun, "type": "response.output_item.added"}
    yield place | {"part": part | {"text": ""} | own, "type": "response.content_part.added"}
    for piece in _pieces(part["text"]):
        yield place | own | {"delta": piece, "type": f"response.{kind}.delta"}
    yield place | own | {"text": part["text"], "type": f"response.{kind}.done"}
    yield place | {"part": part, "type": "response.content_part.done"}
    yield {"item": item | {"status": "completed"}, "type": "response.output_item.done"}


def _blocks(said: Assistant) -> Iterator[dict[str, Any]]:
    if said.reasoning:
        yield {"type": "thinking", "thinking": said.reasoning, "signature": "f6ed1847401c4fd0845713a500119602"}
    if said.content is not None:
        yield {"type": "text", "text": said.content}
    if call := said.tool_call:
        arguments = json.loads(call.arguments)
        yield {"type": "tool_use", "id": f"chatcmpl-tool-{_CALL_ID}", "name": call.name, "input": arguments}


def _messages(body: Body, said: Assistant, prompt: int) -> Iterator[bytes]:
    head = {"id": _HEAD["id"], "type": "message", "role": "assistant"}
    reason = "tool_use" if said.tool_call else "end_turn"
    counts = {"input_tokens": prompt, "output_tokens": _tokens(said)[0]}
    usage = counts | {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    if not body.get("stream"):
        yield compact(
            head | {"content": list(_blocks(said)), "model": MODEL, "stop_reason": reason, "usage": usage}
        ).encode()
        return
    message = head | {"content": [], "model": MODEL, "stop_reason": None, "stop_sequence": None}
    yield event(
        "message_start", {"type": "message_start", "message": message | {"usage": counts | {"output_tokens": 0}}}
    )
    for at, block in enumerate(_blocks(said)):
        for it in _block_events(block):
            yield event(it["type"], it | {"index": at})
    delta = {"stop_reason": reason, "stop_sequence": None}
    yield event("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
    yield event("message_stop", {"type": "message_stop"})


#: Block → the type of its deltas, their key, and the block as it begins.
_BLOCKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "thinking": ("thinking_delta", "thinking", {"thinking": ""}),
    "text": ("text_delta", "text", {"text": ""}),
    "tool_use": ("input_json_delta", "partial_json", {"input": {}}),
}


def _block_events(block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    kind, key, empty = _BLOCKS[block["type"]]
    text = json.dumps(block["input"]) if "input" in block else block[key]
    shown = {name: value for name, value in block.items() if name != "signature"}
    yield {"type": "content_block_start", "content_block": shown | empty}
    for piece in _pieces(text):
        yield {"type": "content_block_delta", "delta": {"type": kind, key: piece}}
    if "signature" in block:
        signed = {"type": "signature_delta", "signature": block["signature"]}
        yield {"type": "content_block_delta", "delta": signed}
    yield {"type": "content_block_stop"}


_RENDERED = {"/v1/chat/completions": _chat, "/v1/responses": _responses, "/v1/messages": _messages}


def _too_long(path: str, words: int) -> Script:
    """vLLM's words for a prompt that does not fit, which differ from API to API."""
    if path == "/v1/responses":
        message = (
            f"This model's maximum context length is {CONTEXT} tokens. However, your prompt contains {words} input tokens, "
            "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
            f"(parameter=input_tokens, value={words})"
        )
        return failing(400, message)
    message = f"Input length ({words}) exceeds model's maximum context length ({CONTEXT})."
    if path == "/v1/messages":
        error = {"type": "error", "error": {"type": "BadRequestError", "message": message}}
        return Script([json.dumps(error).encode()], status=400, content_type="application/json")
    return failing(400, message)
