"""Message answers: Anthropic's, as typed events and whole.

A stream is decoded only where a block of text begins, for a client that gave stop sequences, and from the first call that nobody
offered. The beginning of a text waits until it is more than a header, which is what the output limit may leave of it. A whole answer with
tools or stop sequences is asked of the engine as a stream and put together here (RLY-20): vLLM's own whole answer is a 400
where the output limit cuts a call, because it parses the call's JSON.
"""

from __future__ import annotations

import msgspec

from serving.gateway.answers import capture, documented, framing
from serving.gateway.answers.asked import Asked
from serving.gateway.answers.capture import Capture
from serving.gateway.answers.documented import Document
from serving.gateway.answers.headers import is_cut_header, is_header
from serving.gateway.answers.shaper import Assembly, Counted, Shaper
from serving.gateway.answers.stops import StopSearch

#: How an answer ends when a call of a tool that was not offered was all there was of it (RLY-21).
NOTHING_LEFT = "refusal"

_START = b"event: content_block_start\n"
_CALL = b'"type":"tool_use"'
_TEXT = b'"type":"text_delta"'
_EMPTY = {"type": "text", "text": ""}


class MessageShaper(Shaper):
    """An answer in Anthropic's form."""

    shape = documented.MESSAGES

    def __init__(self, asked: Asked, counted: Counted) -> None:
        super().__init__(asked, counted)
        self._is_read = bool(asked.stops)
        self._has_text = False
        #: Blocks that are not handed out, by the engine's index.
        self._left_out: set[int] = set()
        #: The search in the text block that is open.
        self._search: StopSearch | None = None
        self._usage: Document = {}
        #: Events of a text of which no more than a header has come, and that text.
        self._waiting: list[bytes] = []
        self._so_far = ""
        self._capture = Capture(capture.MESSAGES, asked.keeper) if asked.offers_tools else None

    def events(self, block: bytes) -> bytes:
        if self._capture:
            self._capture.feed(block)
        self._has_text = self._has_text or _TEXT in block
        if not self._is_read and not self._asked.offers_tools and _CALL in block:
            self._is_read = True
        if not self._is_read and not self._waiting and _START not in block:
            return block
        return b"".join(map(self._event, framing.split(block)))

    def _event(self, event: bytes) -> bytes:
        document = None if self.is_over else framing.read(event)
        if document is None:
            return b"" if self.is_over else event
        return self._released(document, self._shaped(document) if self._is_read else event)

    def _released(self, document: Document, shaped: bytes) -> bytes:
        """An event and those that waited for it; nothing while it has to wait itself."""
        kind = document["type"]
        if kind == "content_block_start" and document["content_block"]["type"] == "text":
            released, self._waiting, self._so_far = self._waiting, [shaped], ""
            return b"".join(released)
        if not self._waiting:
            return shaped
        is_cut = kind == "message_delta" and document["delta"].get("stop_reason") == "max_tokens"
        if is_cut and is_cut_header(self._so_far, _tokens(document)):
            self._waiting = []
        self._waiting.append(shaped)
        if kind == "content_block_delta":
            self._so_far += document["delta"].get("text") or ""
        if kind in ("content_block_delta", "content_block_stop") and is_header(self._so_far) and not self.is_over:
            return b""
        released, self._waiting = self._waiting, []
        return b"".join(released)

    def _shaped(self, document: Document) -> bytes:
        kind = document.get("type")
        if kind == "message_start":
            self._usage = document["message"].get("usage") or {}
        elif kind == "message_delta":
            self._end(document["delta"])
        elif "index" in document:
            return self._block_event(document, str(kind))
        return framing.named(document)

    def _block_event(self, document: Document, kind: str) -> bytes:
        """An event of a content block, under the index that it has for the client."""
        index = document["index"]
        document["index"] = index - sum(left_out < index for left_out in self._left_out)
        if kind == "content_block_start":
            self._begin(document["content_block"], index)
        if index in self._left_out:
            return b""
        if self._search is None:
            return framing.named(document)
        if kind == "content_block_delta":
            return self._stopped(document, self._search)
        if kind == "content_block_stop" and (rest := self._search.rest()):
            return _text_delta(document["index"], rest) + framing.named(document)
        return framing.named(document)

    def _begin(self, block: Document, index: int) -> None:
        if block["type"] == "tool_use" and not self._asked.offers_tools:
            self._left_out.add(index)
        is_searched = block["type"] == "text" and self._asked.stops
        self._search = StopSearch(self._asked.stops, keeps_match=False) if is_searched else None

    def _stopped(self, document: Document, search: StopSearch) -> bytes:
        """A delta as far as a stop sequence lets it, and the end of the stream where one is complete."""
        text = search.feed(document["delta"].get("text") or "")
        delta = _text_delta(document["index"], text) if text else b""
        if search.matched is None:
            return delta
        self.is_over = True
        usage = {**self._usage, "output_tokens": self._counted().completion_tokens}
        ending = {"stop_reason": "stop_sequence", "stop_sequence": search.matched}
        return delta + b"".join(
            map(
                framing.named,
                (
                    {"type": "content_block_stop", "index": document["index"]},
                    {"type": "message_delta", "delta": ending, "usage": usage},
                    {"type": "message_stop"},
                ),
            )
        )

    def _end(self, ending: Document) -> None:
        if self._left_out and ending.get("stop_reason") == "tool_use":
            ending["stop_reason"] = "end_turn" if self._has_text else NOTHING_LEFT

    def _finished(self, answer: Document) -> Document:
        answer.setdefault("stop_reason", None)
        answer.setdefault("stop_sequence", None)
        blocks = answer.get("content") or []
        if (
            answer["stop_reason"] == "max_tokens"
            and blocks
            and is_cut_header(blocks[-1].get("text", "-"), _tokens(answer))
        ):
            answer["content"] = blocks[:-1] or [_EMPTY]
        if not self._asked.offers_tools:
            self._leave_calls_out(answer)
        return answer

    def _leave_calls_out(self, answer: Document) -> None:
        blocks = answer.get("content") or []
        kept = [block for block in blocks if block.get("type") != "tool_use"]
        if len(kept) == len(blocks):
            return
        answer["content"] = kept or [_EMPTY]
        if answer["stop_reason"] == "tool_use":
            has_text = any(block.get("text") for block in kept)
            answer["stop_reason"] = "end_turn" if has_text else NOTHING_LEFT


def _tokens(document: Document) -> int:
    """Output tokens that a message or its last event says."""
    return (document.get("usage") or {}).get("output_tokens") or 0


def _text_delta(index: int, text: str) -> bytes:
    delta = {"type": "text_delta", "text": text}
    return framing.named({"type": "content_block_delta", "index": index, "delta": delta})


class MessageAssembly(Assembly):
    """A whole message out of events that were shaped."""

    def __init__(self) -> None:
        super().__init__()
        self._message: Document = {}
        self._blocks: list[Document] = []
        #: JSON of the calls, by the index of their block.
        self._inputs: dict[int, str] = {}

    def add(self, block: bytes) -> None:
        for event in framing.split(block):
            if document := framing.read(event):
                self._add(document)

    def _add(self, document: Document) -> None:
        kind = document["type"]
        if kind == "message_start":
            self._message = document["message"]
        elif kind == "content_block_start":
            self._blocks.append(document["content_block"])
        elif kind == "content_block_delta":
            self._add_delta(document["index"], document["delta"])
        elif kind == "message_delta":
            self._message |= document["delta"]
            self._message["usage"] = {**(self._message.get("usage") or {}), **document.get("usage", {})}

    def _add_delta(self, index: int, delta: Document) -> None:
        block = self._blocks[index]
        for name in ("text", "thinking", "signature"):
            if piece := delta.get(name):
                block[name] = block.get(name, "") + piece
                self.held_chars += len(piece)
        if piece := delta.get("partial_json"):
            self._inputs[index] = self._inputs.get(index, "") + piece
            self.held_chars += len(piece)

    def body(self) -> bytes:
        is_cut = self._message.get("stop_reason") == "max_tokens"
        content = []
        for index, block in enumerate(self._blocks):
            if block["type"] == "tool_use":
                arguments = _arguments(self._inputs.get(index, ""))
                if arguments is None and is_cut:
                    # A client would run what it gets: half a call is none.
                    continue
                block["input"] = arguments or {}
            content.append(block)
        answer = {**self._message, "content": content or [_EMPTY]}
        return msgspec.json.encode(documented.pruned(answer, documented.MESSAGES))


def _arguments(text: str) -> Document | None:
    """A call's arguments; None where they are no JSON object."""
    try:
        arguments = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None
    return arguments if isinstance(arguments, dict) else None


class CountShaper(Shaper):
    """How many tokens a prompt has."""

    shape = documented.COUNT_TOKENS
