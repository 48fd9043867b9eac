"""Chat answers: stop strings, log probabilities and calls that nobody offered, in chunks and whole.

A stream is decoded only for a client that asked for stop strings or log probabilities, from the first call that is not handed out,
and where the output limit ends it. A whole answer with tools, stop strings or log probabilities is asked of the engine as a stream and put together here: then
both say the same (RLY-20).
"""

from __future__ import annotations

import re

import msgspec

from serving.gateway.answers import capture, documented, framing
from serving.gateway.answers.asked import Asked
from serving.gateway.answers.capture import Capture
from serving.gateway.answers.chunk_answers import ChunkShaper, ordinary, without_usage
from serving.gateway.answers.documented import Document
from serving.gateway.answers.headers import is_cut_header
from serving.gateway.answers.logprobs import Visible
from serving.gateway.answers.shaper import Assembly, Counted
from serving.gateway.answers.stops import StopSearch

#: How an answer ends when a call of a tool that was not offered was all there was of it (RLY-21).
NOTHING_LEFT = "content_filter"
DONE = b"data: [DONE]\n\n"

_CUT = b'"finish_reason":"length"'
_CALLS = b'"tool_calls":['
_TEXT = re.compile(rb'"content":"[^"]')


class _Choice:
    """One choice of an answer, on its way."""

    def __init__(self, asked: Asked, *, has_text: bool) -> None:
        self._asked = asked
        self._search = StopSearch(asked.stops, keeps_match=asked.keeps_stop)
        self._visible = Visible()
        self._has_text = has_text
        self._has_left_out = False
        self.is_over = False
        #: What it has cost, as its last chunk said.
        self.usage: Document = {}

    def take(self, choice: Document, usage: Document) -> bool:
        """Make a chunk's choice what the client gets; says whether anything is left of it."""
        self.usage = usage or self.usage
        if self.is_over:
            return False
        delta: Document = choice["delta"]
        if not self._asked.offers_tools and delta.pop("tool_calls", None):
            self._has_left_out = True
        is_last = choice.get("finish_reason") is not None
        _leave_header_out(choice, delta, usage)
        came = delta.get("content") or ""
        text = self._stopped(came, usage, is_last=is_last)
        self._has_text = self._has_text or bool(text)
        if came or text:
            delta["content"] = text
        if entries := (choice.get("logprobs") or {}).get("content"):
            self._visible.take(entries, came)
        if self._asked.wants_logprobs:
            released = self._visible.release(text)
            choice["logprobs"] = {"content": released} if released else None
        self._finish(choice, is_last=is_last)
        return self.is_over or any(value for value in delta.values()) or "role" in delta

    @property
    def is_stopped(self) -> bool:
        """A stop string ended it."""
        return self._search.matched is not None

    def _stopped(self, text: str, usage: Document, *, is_last: bool) -> str:
        """As much of a delta's text as may go on."""
        if usage.get("completion_tokens", self._asked.min_tokens + 1) > self._asked.min_tokens:
            text = self._search.feed(text)
        if is_last and not self.is_stopped:
            text += self._search.rest()
        return text

    def _finish(self, choice: Document, *, is_last: bool) -> None:
        if self.is_stopped:
            choice["finish_reason"] = "stop"
        elif is_last and not self._asked.offers_tools:
            choice["finish_reason"] = _reason(choice["finish_reason"], self._has_left_out, has_text=self._has_text)
        self.is_over = choice.get("finish_reason") is not None


def _usage_chunk(chunk: Document, usages: list[Document]) -> Document:
    """A stream's last chunk, as the engine would have said it: the prompt once, the tokens of all choices."""
    prompt = usages[0].get("prompt_tokens", 0)
    completion = sum(usage.get("completion_tokens", 0) for usage in usages)
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    details = [usage["completion_tokens_details"] for usage in usages if usage.get("completion_tokens_details")]
    if details:
        reasoning = sum(detail.get("reasoning_tokens") or 0 for detail in details)
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return {**chunk, "choices": [], "usage": usage}


def _leave_header_out(choice: Document, said: Document, usage: Document) -> None:
    """Take out of a message or a delta what the output limit left of a header; of models that reason, whose usage tells so."""
    is_cut = choice.get("finish_reason") == "length" and usage.get("completion_tokens_details")
    if is_cut and said.get("content") and is_cut_header(said["content"], usage.get("completion_tokens") or 0):
        said["content"] = None


def _without_header(event: bytes) -> bytes:
    chunk = framing.read(event) if _CUT in event else None
    if chunk is None:
        return event
    for choice in chunk["choices"]:
        _leave_header_out(choice, choice["delta"], chunk.get("usage") or {})
    return framing.chunk(chunk)


def _reason(said: str, has_left_out: bool, *, has_text: bool) -> str:
    """Why an answer ended whose client offered no tools."""
    if said == "length" or not has_left_out:
        return said
    return "stop" if has_text else NOTHING_LEFT


class ChatShaper(ChunkShaper):
    """Chat's answers."""

    shape = documented.CHAT

    def __init__(self, asked: Asked, counted: Counted) -> None:
        super().__init__(asked, counted)
        self._is_read = bool(asked.stops) or asked.wants_logprobs
        self._has_text = asked.offers_tools
        self._choices: dict[int, _Choice] = {}
        # Of several choices a client sends one back, and their chunks are mixed.
        is_captured = asked.offers_tools and asked.choices == 1
        self._capture = Capture(capture.CHAT, asked.keeper) if is_captured else None

    def events(self, block: bytes) -> bytes:
        if self._capture:
            self._capture.feed(block)
        is_ordinary = (chunk := ordinary(block)) is not None
        block = super().events(block) if chunk is None else chunk
        if not self._is_read and not self._asked.offers_tools and _CALLS in block:
            self._is_read = True
        if not self._is_read:
            self._has_text = self._has_text or _TEXT.search(block) is not None
            if is_ordinary:
                return block
            return block if _CUT not in block else b"".join(map(_without_header, framing.split(block)))
        return b"".join(map(self._event, framing.split(block)))

    def ordinary(self, event: bytes) -> bytes | None:
        if self._is_read or not self._has_text or (_CALLS in event and not self._asked.offers_tools):
            return None
        chunk = without_usage(event)
        if chunk is not None and self._capture:
            self._capture.feed(event)
        return chunk

    def _event(self, event: bytes) -> bytes:
        chunk = framing.read(event)
        if self.is_over or chunk is None or not chunk.get("choices"):
            return b"" if self.is_over else event
        usage = chunk.get("usage") or {}
        chunk["choices"] = [choice for choice in chunk["choices"] if self._choice(choice["index"]).take(choice, usage)]
        shaped = framing.chunk(chunk) if chunk["choices"] else b""
        return shaped + self._closing(chunk)

    def _choice(self, index: int) -> _Choice:
        if index not in self._choices:
            self._choices[index] = _Choice(self._asked, has_text=self._has_text)
        return self._choices[index]

    def _closing(self, chunk: Document) -> bytes:
        """The stream's end, once the last choice is over and a stop string ended one that the engine would go on with."""
        choices = self._choices.values()
        self.is_over = (
            any(choice.is_stopped for choice in choices)
            and len(choices) == self._asked.choices
            and all(choice.is_over for choice in choices)
        )
        return framing.chunk(_usage_chunk(chunk, [choice.usage for choice in choices])) + DONE if self.is_over else b""

    def _finished(self, answer: Document) -> Document:
        for choice in answer.get("choices", ()):
            message = choice.get("message", {})
            _leave_header_out(choice, message, answer.get("usage") or {})
            if not self._asked.offers_tools and message.pop("tool_calls", None):
                choice["finish_reason"] = _reason(choice["finish_reason"], True, has_text=bool(message.get("content")))
        return answer


class ChatAssembly(Assembly):
    """A whole chat answer out of chunks that were shaped."""

    def __init__(self) -> None:
        super().__init__()
        self._last: Document = {}
        self._choices: dict[int, Document] = {}

    def add(self, block: bytes) -> None:
        for event in framing.split(block):
            if chunk := framing.read(event):
                self._last |= chunk
                for choice in chunk["choices"]:
                    self._add_choice(choice)
                    if choice.get("logprobs"):
                        self.held_chars += len(event)

    def _add_choice(self, choice: Document) -> None:
        whole = self._choices.setdefault(choice["index"], _empty(choice["index"]))
        delta = choice["delta"]
        message = whole["message"]
        for name in ("content", "reasoning"):
            if text := delta.get(name):
                message[name] = (message[name] or "") + text
                self.held_chars += len(text)
        for call in delta.get("tool_calls") or ():
            _add_call(message.setdefault("tool_calls", []), call)
            self.held_chars += len((call.get("function") or {}).get("arguments") or "")
        if entries := (choice.get("logprobs") or {}).get("content"):
            whole["logprobs"] = whole["logprobs"] or {"content": []}
            whole["logprobs"]["content"] += entries
        whole["finish_reason"] = choice.get("finish_reason") or whole["finish_reason"]

    def body(self) -> bytes:
        choices = [self._choices[index] for index in sorted(self._choices)]
        answer = {
            **self._last,
            "object": "chat.completion",
            "choices": choices,
            "service_tier": None,
        }
        return msgspec.json.encode(documented.pruned(answer, documented.CHAT))


def _empty(index: int) -> Document:
    message = {"role": "assistant", "content": None, "refusal": None, "reasoning": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": None}


def _add_call(calls: list[Document], delta: Document) -> None:
    """A tool call's next piece: its first one has the id and the name."""
    while len(calls) <= delta["index"]:
        calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[delta["index"]]
    call["id"] = delta.get("id") or call["id"]
    function = delta.get("function") or {}
    for name in ("name", "arguments"):
        call["function"][name] += function.get(name) or ""
