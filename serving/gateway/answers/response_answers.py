"""Response answers: those of `/v1/responses`, as typed events and whole.

Deltas pass byte for byte. Events that carry the response or an item are decoded, and some wait for the next one:

| event | waits for | because |
|---|---|---|
| `response.created`, `.in_progress` | anything else | a fault of the request is found after them, and is a 400 as long as nothing went out |
| the beginning of a message | its first text | the output limit may leave a header of it, which is no text (`headers`) |
| `response.output_item.done` | the next event | only the last one says whether the item was cut |

From the first item that is not handed out, and for a client that gave stop strings, every event is decoded. Not handed out are a
hosted tool's call, which nothing runs here, and a call that nobody offered.
"""

from __future__ import annotations

import msgspec

from serving.gateway.answers import documented, framing
from serving.gateway.answers.asked import Asked
from serving.gateway.answers.documented import Document
from serving.gateway.answers.headers import is_cut_header, is_header
from serving.gateway.answers.namespaces import by_flat_name
from serving.gateway.answers.shaper import Assembly, Counted, Shaper
from serving.gateway.answers.stops import StopSearch

#: Why a response is incomplete when calls of tools that were not offered were all there was of it (RLY-21).
NOTHING_LEFT = "content_filter"

_RESPONSE = b'"response":{'
_MARKS = (_RESPONSE, b"event: response.output_item.")
#: Its event names the function.
_ARGUMENTS = b"event: response.function_call_arguments.done\n"
_SHELLS = ("response.created", "response.in_progress", "response.queued")
_ADDED = "response.output_item.added"
_DONE = "response.output_item.done"
_DELTA = "response.output_text.delta"
_OWN = ("message", "reasoning")
_CALLS = ("function_call",)
#: What a response says where a request does not.
_DEFAULT_TEXT = {"format": {"type": "text"}}


class ResponseShaper(Shaper):
    """An answer in the form of OpenAI's Responses."""

    shape = documented.RESPONSE

    def __init__(self, asked: Asked, counted: Counted) -> None:
        super().__init__(asked, counted)
        self._is_read = bool(asked.stops)
        self._handed_out = frozenset(_OWN + _CALLS if asked.offers_tools else _OWN)
        #: Items that are not handed out, by the engine's index.
        self._left_out: set[int] = set()
        #: Events that wait for the next one.
        self._waiting: list[Document] = []
        #: Events that the client gets more than the engine gave; fewer where it is negative.
        self._more = 0
        self._response: Document = {}
        #: Items that are complete, and the one that is not.
        self._done: list[Document] = []
        self._open: Document = {}
        self._text = _Text(asked)
        #: Functions that the client groups, by the name that the engine has for them.
        self._namespaced = by_flat_name(asked.echoed.get("tools"))
        #: What the client carries of each item of reasoning, by its id.
        self._sealed: dict[str, str] = {}

    def events(self, block: bytes) -> bytes:
        marks = (*_MARKS, _ARGUMENTS) if self._namespaced else _MARKS
        if not self._is_read and not self._waiting and not any(mark in block for mark in marks):
            return block
        return b"".join(map(self._event, framing.split(block)))

    def _event(self, event: bytes) -> bytes:
        document = None if self.is_over else framing.read(event)
        if document is None:
            return b"" if self.is_over else event
        if "response" in document:
            self._read_response(document)
            return self._released([document])
        documents = self._read_item(document)
        self._more += len(documents) - 1
        return self._released(documents)

    def _released(self, documents: list[Document]) -> bytes:
        """Events as the client gets them, once the last one need not wait."""
        is_waiting = True
        for offset, document in enumerate(documents, 1 - len(documents)):
            document["sequence_number"] = document.get("sequence_number", 0) + self._more + offset
            is_waiting = self._waits(document)
            self._waiting.append(document)
        if is_waiting:
            return b""
        released, self._waiting = self._waiting, []
        return b"".join(map(framing.named, released))

    def _waits(self, document: Document) -> bool:
        kind = document["type"]
        if kind in _SHELLS or kind == _DONE:
            return True
        if kind == _ADDED:
            return bool(document["item"].get("type") == "message")
        if kind == _DELTA:
            return bool(self._waiting) and is_header(document["delta"])
        begins = bool(self._waiting) and self._waiting[-1]["type"] != _DONE
        return begins and "response" not in document and self._waiting[-1]["type"] not in _SHELLS

    def _read_response(self, document: Document) -> None:
        """An event that carries the response; the last one is named after the status in it."""
        response = self._finished(documented.pruned(document["response"], documented.RESPONSE))
        self._response = document["response"] = response
        if document["type"] not in _SHELLS and response.get("status"):
            document["type"] = f"response.{response['status']}"

    def _cut(self, answer: Document) -> None:
        """The last item, now that the output limit is known to have cut it, and its events as far as they wait."""
        items = answer.get("output") or []
        if items and _is_header(items[-1], (answer.get("usage") or {}).get("output_tokens") or 0):
            items.pop()
            starts = [at for at, waiting in enumerate(self._waiting) if waiting["type"] == _ADDED]
            if starts:
                self._more -= len(self._waiting) - starts[0]
                del self._waiting[starts[0] :]
        elif items:
            items[-1]["status"] = "incomplete"
            for waiting in self._waiting:
                if waiting["type"] == _DONE and waiting["item"].get("id") == items[-1].get("id"):
                    waiting["item"]["status"] = "incomplete"

    def _read_item(self, document: Document) -> list[Document]:
        """What the client gets for an event of an item, under the index that the item has for the client."""
        index = document.get("output_index", 0)
        if "item" in document:
            if document["item"].get("type") not in self._handed_out:
                self._is_read = True
                self._left_out.add(index)
            document["item"] = documented.pruned(document["item"], documented.ITEM)
            self._seal(document["item"])
            self._name(document["item"])
        elif "name" in document:
            document["name"] = self._namespaced.get(document["name"], ("", document["name"]))[1]
        if index in self._left_out:
            return []
        if "output_index" in document:
            document["output_index"] = index - sum(left_out < index for left_out in self._left_out)
        if document["type"] == _ADDED:
            self._open = document["item"]
        elif document["type"] == _DONE:
            self._done.append(document["item"])
        if not self._asked.stops:
            return [document]
        events = self._text.take(document)
        if self._text.matched is not None:
            self.is_over = True
            events += self._endings(document)
        return events

    def _endings(self, document: Document) -> list[Document]:
        """The rest of a stream whose text a stop string has ended: the text, its part, its item and the response are done."""
        place = _place(document)
        part = {"type": "output_text", "text": self._text.so_far, "annotations": [], "logprobs": []}
        item = {**self._open, "status": "completed", "content": [part]}
        response = {**self._response, "status": "completed", "output": [*self._done, item], "usage": self._usage()}
        number = {"sequence_number": place["sequence_number"]}
        return [
            {**place, "type": "response.output_text.done", "text": self._text.so_far, "logprobs": []},
            {**place, "type": "response.content_part.done", "part": part},
            {**number, "type": _DONE, "output_index": place["output_index"], "item": item},
            {**number, "type": "response.completed", "response": response},
        ]

    def _usage(self) -> Document:
        usage = self._counted()
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_prompt_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _finished(self, answer: Document) -> Document:
        """With what the client sent, and without what is not handed out."""
        echoed = self._asked.echoed
        answer |= {**echoed, "text": {**_DEFAULT_TEXT, **echoed.get("text", {})}}
        items = answer.get("output") or []
        if answer.get("status") == "incomplete":
            self._cut(answer)
        kept = [item for item in items if item.get("type") in self._handed_out]
        self._keep(kept)
        for item in kept:
            self._seal(item)
            self._name(item)
            # vLLM leaves it out of reasoning.
            item["status"] = item.get("status") or "completed"
        if len(kept) < len(items):
            answer["output"] = kept
            if answer.get("status") == "completed" and all(item["type"] == "reasoning" for item in kept):
                answer |= {"status": "incomplete", "incomplete_details": {"reason": NOTHING_LEFT}}
        return answer

    def _keep(self, items: list[Document]) -> None:
        """Remember reasoning by its own id and by those of the calls that follow it."""
        text = ""
        for item in items:
            if item["type"] == "reasoning":
                text = _reasoning(item)
            if item["type"] in ("reasoning", *_CALLS):
                self._asked.keeper.keep(text, item.get("id") or "", item.get("call_id") or "")

    def _name(self, item: Document) -> None:
        """A call as the client knows its function."""
        if item.get("type") in _CALLS and item.get("name") in self._namespaced:
            item["namespace"], item["name"] = self._namespaced[item["name"]]

    def _seal(self, item: Document) -> None:
        text = _reasoning(item) if self._asked.wants_sealed and item.get("type") == "reasoning" else ""
        if text:
            # The same in its own event and in the response.
            name = item.get("id") or ""
            self._sealed[name] = item["encrypted_content"] = self._sealed.get(name) or self._asked.keeper.seal(text)


def _reasoning(item: Document) -> str:
    return "".join(part.get("text") or "" for part in item.get("content") or ())


def _is_header(item: Document, tokens: int) -> bool:
    """A message of which the output limit left no text, in an answer of so many tokens."""
    if item.get("type") != "message":
        return False
    return is_cut_header("".join(part.get("text") or "" for part in item.get("content") or ()), tokens)


def _place(document: Document) -> Document:
    return {name: document[name] for name in ("item_id", "output_index", "content_index", "sequence_number")}


class _Text:
    """The text of the part that is open, searched for stop strings."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._search = self._new_search()
        self.so_far = ""

    def _new_search(self) -> StopSearch:
        return StopSearch(self._asked.stops, keeps_match=self._asked.keeps_stop)

    @property
    def matched(self) -> str | None:
        return self._search.matched

    def take(self, document: Document) -> list[Document]:
        """What the client gets for an event: deltas as far as a stop string lets them."""
        if document["type"] == _DELTA:
            return self._delta(document, self._search.feed(document["delta"]))
        if document["type"] == "response.output_text.done":
            rest = self._delta({"type": _DELTA, **_place(document), "logprobs": []}, self._search.rest())
            self._search, self.so_far = self._new_search(), ""
            return [*rest, document]
        return [document]

    def _delta(self, document: Document, text: str) -> list[Document]:
        self.so_far += text
        return [{**document, "delta": text}] if text else []


class InputTokensShaper(Shaper):
    """How many tokens the prompt of a response has."""

    shape = documented.INPUT_TOKENS


class ResponseAssembly(Assembly):
    """A whole response out of events that were shaped: the last one carries it."""

    def __init__(self) -> None:
        super().__init__()
        self._last: Document = {}

    def add(self, block: bytes) -> None:
        for event in framing.split(block):
            if _RESPONSE in event and (document := framing.read(event)):
                self._last = document["response"]
                self.held_chars = len(event)

    def body(self) -> bytes:
        return msgspec.json.encode(self._last)
