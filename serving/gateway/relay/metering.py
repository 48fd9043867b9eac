"""Metering: how many tokens a call cost, read off the bytes as they pass, or estimated by a named rule when they stop.

| rule | when | how |
|---|---|---|
| (exact) | the engine said it at the end | its own usage |
| `last_chunk` | a chat or completion stream was cut | the usage in its last chunk; tokens under way then are not counted |
| `events_seen` | a Responses or Messages stream was cut, or a chat or completion stream without usage | events that carried text × tokens per event, and what opens each part; prompt as said or by bytes |
| `answer_bytes` | a whole answer without usage | bytes of its texts ÷ 4, prompt by bytes |
| `implausible_usage` | the engine said more tokens than its context holds, or fewer than none | as if it had said nothing; logged |
| `prompt_bytes` | an embedding or a stream was cut before its first chunk | bytes of the body ÷ bytes per token |
| `bytes_sent_time_elapsed` | a call that does not stream was cut | prompt by bytes; seconds × tokens per second, within the call's limit |

Bytes per token, tokens per second, tokens per event and tokens that open a part are `admission.estimates`.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod

import msgspec

from serving.gateway.admission.estimates import BYTES_PER_PROMPT_TOKEN, Rates, Seen
from serving.gateway.dialects.call import Call
from serving.gateway.dialects.dialect import ChunkStream, Counts, EventStream
from serving.gateway.nouns import Usage

LAST_CHUNK = "last_chunk"
EVENTS_SEEN = "events_seen"
PROMPT_BYTES = "prompt_bytes"
BYTES_SENT_TIME_ELAPSED = "bytes_sent_time_elapsed"
ANSWER_BYTES = "answer_bytes"
IMPLAUSIBLE_USAGE = "implausible_usage"

#: Tokens of a context whose size is not known, at most: beyond any model's.
CONTEXT_TOKENS_MAX = 16 * 1024 * 1024

#: Bytes kept from the end of an unstreamed answer: usage stands after the choices, followed by a few nulls.
TAIL_BYTES = 8 * 1024

log = logging.getLogger(__name__)

_USAGE_OBJECT = re.compile(rb'"usage": ?(\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\})')


def _last_usage(data: bytes, counts: type[Counts] | None) -> Usage | None:
    """The last usage object in `data`: what a client may have had echoed stands before it."""
    start = data.rfind(b'"usage":')
    found = _USAGE_OBJECT.match(data, start) if start >= 0 else None
    if found is None or counts is None:
        return None
    try:
        return msgspec.json.decode(found[1], type=counts).usage()
    except msgspec.DecodeError:
        return None


def is_plausible(usage: Usage, call: Call, context_tokens: int) -> bool:
    """Can a call have cost this? No sequence holds more than its engine's context, and none less than nothing."""
    most = context_tokens or CONTEXT_TOKENS_MAX
    prompts = max(call.sequences // call.choices, 1)
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens, usage.reasoning_tokens)
    is_within = usage.prompt_tokens <= most * prompts and usage.completion_tokens <= most * call.sequences
    are_parts = usage.cached_prompt_tokens <= most * prompts and usage.reasoning_tokens <= most * call.sequences
    return min(counts) >= 0 and is_within and are_parts


class Meter(ABC):
    """One answer's tokens. `scan` sees its bytes; `usage` may be asked at any time."""

    def __init__(self, call: Call, rates: Rates, context_tokens: int) -> None:
        self._call = call
        self._rates = rates
        self._context_tokens = context_tokens
        self._exact: Usage | None = None
        #: The engine said what cannot be.
        self._is_implausible = False

    @property
    def seen(self) -> Seen:
        """Of a stream of typed events; chunks do not count, because a client sets how many tokens each holds."""
        return Seen()

    @property
    def is_exact(self) -> bool:
        """The engine has said what the answer has cost."""
        return self._exact is not None

    @property
    def events_passed(self) -> int:
        """All typed events, the next one's sequence number."""
        return 0

    @abstractmethod
    def scan(self, block: bytes) -> None:
        """More of the answer has passed: whole events of a stream, any bytes of a whole answer."""

    def conclude(self, block: bytes) -> None:  # noqa: B027 Only chunks say on the way what an answer has cost.
        """The gateway ended the stream before its engine did, with these events."""

    def close(self) -> None:  # noqa: B027 A stream says in its bytes that it is over; only a whole answer overrides this.
        """The answer is complete."""

    def usage(self, seconds: float) -> Usage:
        """Exact when finished, else estimated; `seconds` since the engine got the call."""
        if self._exact is not None:
            return self._exact
        estimate = self._estimate(seconds)
        return msgspec.structs.replace(estimate, estimated_by=IMPLAUSIBLE_USAGE) if self._is_implausible else estimate

    def _read_usage(self, data: bytes) -> Usage | None:
        """The last usage in `data` that can be true."""
        usage = _last_usage(data, self._call.dialect.counts)
        if usage is None or is_plausible(usage, self._call, self._context_tokens):
            return usage
        if not self._is_implausible:
            log.warning("a usage of %s that cannot be true is neither billed nor learned: %s", self._call.model, usage)
        self._is_implausible = True
        return None

    @abstractmethod
    def _estimate(self, seconds: float) -> Usage:
        """What it came to so far, with the rule that says so."""

    def learn(self, seconds: float) -> None:
        """Let an exact usage improve later estimates."""
        if self._exact is not None:
            self._rates.learn(self._call, self._exact, seconds, self.seen)


class WholeMeter(Meter):
    """An answer that does not stream: usage stands near its end."""

    def __init__(self, call: Call, rates: Rates, context_tokens: int) -> None:
        super().__init__(call, rates, context_tokens)
        self._tail = b""
        #: All of the answer that was seen at once, and how much there was.
        self._block = b""
        self._bytes = 0
        self._is_closed = False

    def scan(self, block: bytes) -> None:
        self._tail = (self._tail + block)[-TAIL_BYTES:]
        self._bytes += len(block)
        self._block = block if self._bytes == len(block) else b""

    def close(self) -> None:
        self._is_closed = True
        self._exact = self._read_usage(self._tail) if self._call.dialect.is_billed else Usage()

    def _estimate(self, seconds: float) -> Usage:
        if not self._call.dialect.is_billed:
            return Usage()
        prompt_tokens = self._rates.prompt_tokens(self._call)
        if self._call.dialect.stream is None:
            return Usage(prompt_tokens=prompt_tokens, estimated_by=PROMPT_BYTES)
        if self._is_closed:
            return Usage(prompt_tokens=prompt_tokens, completion_tokens=self._by_bytes(), estimated_by=ANSWER_BYTES)
        made = round(seconds * self._rates.tokens_per_s)
        limit = self._call.output_tokens_max or self._context_tokens or None
        each = made if limit is None else min(made, limit)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=each * self._call.sequences,
            estimated_by=BYTES_SENT_TIME_ELAPSED,
        )

    def _by_bytes(self) -> int:
        """An answer is never free: its texts where all of it was seen at once, else all that there was."""
        texts = _TEXT.findall(self._block)
        count = sum(map(len, texts)) if texts else self._bytes
        return max(round(count / BYTES_PER_PROMPT_TOKEN), self._call.sequences)


_TEXT_KEYS = rb'"(?:content|reasoning|reasoning_content|text|thinking|arguments)": ?"'
#: A text of a whole answer.
_TEXT = re.compile(_TEXT_KEYS + rb'([^"\\]*(?:\\.[^"\\]*)*)"')
#: The beginning of a text in a chunk that is not empty.
_SOME_TEXT = re.compile(_TEXT_KEYS + rb'[^"]')
_CHOICE = re.compile(
    rb'"choices":\[\{"index":(\d+),[^\n]*"usage":\{"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)'
)


class ChunkMeter(Meter):
    """Chat and completions: every chunk says what its own choice has cost so far, the last one what all have."""

    def __init__(self, call: Call, rates: Rates, context_tokens: int) -> None:
        super().__init__(call, rates, context_tokens)
        self._last = b""
        #: Chunks with text and without usage, and all chunks.
        self._texts = 0
        self._chunks = 0
        #: Per choice: its prompt's tokens, its own tokens. Only filled when there are several.
        self._choices: dict[int, tuple[int, int]] = {}

    def scan(self, block: bytes) -> None:
        self._chunks += block.count(b"data: {")
        if b'"choices":[],"usage":' in block:
            self._exact = self._read_usage(block)
        elif b'"usage":{' not in block and b'"usage": {' not in block:
            self._texts += len(_SOME_TEXT.findall(block))
        elif self._call.sequences > 1:
            for index, prompt, completion in _CHOICE.findall(block):
                self._choices[int(index)] = int(prompt), int(completion)
        else:
            self._last = block

    def see(self, chunk: bytes) -> None:
        """`scan` for one chunk with usage of a call with one sequence."""
        self._chunks += 1
        self._last = chunk

    def conclude(self, block: bytes) -> None:
        # As exact as any: nothing that the engine made afterwards is in the answer.
        self.scan(block)

    def _estimate(self, seconds: float) -> Usage:
        so_far = self._several() if self._choices else self._read_usage(self._last)
        if so_far is None:
            return self._by_events()
        return msgspec.structs.replace(so_far, estimated_by=LAST_CHUNK)

    def _by_events(self) -> Usage:
        # Of chunks whose usage is not believed, the first and the last carry no text.
        texts = self._texts or (max(self._chunks - 2, 1) if self._is_implausible else 0)
        made = round(texts * self._rates.tokens_per_event)
        prompt_tokens = self._rates.prompt_tokens(self._call)
        return Usage(prompt_tokens, made, estimated_by=EVENTS_SEEN if made else PROMPT_BYTES)

    def _several(self) -> Usage | None:
        # Choices of one prompt stand side by side; their prompt is read once.
        prompts = {index // self._call.choices: prompt for index, (prompt, _) in self._choices.items()}
        usage = Usage(
            prompt_tokens=sum(prompts.values()),
            completion_tokens=sum(completion for _, completion in self._choices.values()),
        )
        return usage if is_plausible(usage, self._call, self._context_tokens) else None


class EventMeter(Meter):
    """Responses and Messages: typed events; the last one carries usage, and the first one of Messages the prompt's."""

    def __init__(self, call: Call, rates: Rates, context_tokens: int, stream: EventStream) -> None:
        super().__init__(call, rates, context_tokens)
        self._stream = stream
        self._texts = 0
        self._parts = 0
        self._tool_parts = 0
        self._events = 0
        self._started: Usage | None = None

    @property
    def seen(self) -> Seen:
        return Seen(self._texts, self._parts, self._tool_parts)

    @property
    def events_passed(self) -> int:
        return self._events

    def scan(self, block: bytes) -> None:
        self._events += block.count(b"\nevent: ") + block.startswith(b"event: ")
        self._texts += block.count(self._stream.text_event)
        if self._stream.no_text:
            self._texts -= block.count(self._stream.no_text)
        for part in block.split(self._stream.part_event)[1:]:
            self._parts += 1
            self._tool_parts += self._stream.tool_part in part.partition(b"\n\n")[0]
        for name in self._stream.last_events:
            start = block.rfind(name)
            if start >= 0:
                self._exact = self._read_usage(block[start:])
        if self._started is None and self._stream.first_event is not None:
            start = block.find(self._stream.first_event)
            if start >= 0:
                self._started = self._read_usage(block[start:].partition(b"\n\n")[0])

    def _estimate(self, seconds: float) -> Usage:
        made = self._rates.streamed_tokens(self.seen)
        prompt_tokens = self._started.prompt_tokens if self._started else self._rates.prompt_tokens(self._call)
        rule = EVENTS_SEEN if self._events else PROMPT_BYTES
        return Usage(prompt_tokens=prompt_tokens, completion_tokens=made, estimated_by=rule)


def meter_for(call: Call, rates: Rates, context_tokens: int = 0) -> Meter:
    """The meter for the answer to `call` of an engine with this context, 0 where it is not known."""
    stream = call.dialect.stream if call.is_streamed or call.is_assembled else None
    if isinstance(stream, ChunkStream):
        return ChunkMeter(call, rates, context_tokens)
    if isinstance(stream, EventStream):
        return EventMeter(call, rates, context_tokens, stream)
    return WholeMeter(call, rates, context_tokens)
