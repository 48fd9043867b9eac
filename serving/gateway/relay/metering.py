"""Metering: how many tokens a call cost, read off the bytes as they pass, or estimated by a named rule when they stop.

| rule | when | how |
|---|---|---|
| (exact) | the engine said it at the end | its own usage |
| `last_chunk` | a chat or completion stream was cut | the usage in its last chunk; tokens under way then are not counted |
| `events_seen` | a Responses or Messages stream was cut | events that carried text × tokens per event, prompt as said or by bytes |
| `prompt_bytes` | an embedding or a stream was cut before its first chunk | bytes of the body ÷ bytes per token |
| `bytes_sent_time_elapsed` | a call that does not stream was cut | prompt by bytes; seconds × tokens per second, within the call's limit |

Bytes per token, tokens per second and tokens per event are `admission.estimates`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

import msgspec

from serving.gateway.admission.estimates import Rates
from serving.gateway.dialects.call import Call
from serving.gateway.dialects.dialect import ChunkStream, Counts, EventStream
from serving.gateway.nouns import Usage

LAST_CHUNK = "last_chunk"
EVENTS_SEEN = "events_seen"
PROMPT_BYTES = "prompt_bytes"
BYTES_SENT_TIME_ELAPSED = "bytes_sent_time_elapsed"

#: Bytes kept from the end of an unstreamed answer: usage stands after the choices, followed by a few nulls.
TAIL_BYTES = 8 * 1024

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


class Meter(ABC):
    """One answer's tokens. `scan` sees its bytes; `usage` may be asked at any time."""

    def __init__(self, call: Call, rates: Rates) -> None:
        self._call = call
        self._rates = rates
        self._exact: Usage | None = None

    @property
    def events_seen(self) -> int:
        """Typed events that carried text; chunks do not count, because a client sets how many tokens each holds."""
        return 0

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
        return self._exact or self._estimate(seconds)

    @abstractmethod
    def _estimate(self, seconds: float) -> Usage:
        """What it came to so far, with the rule that says so."""

    def learn(self, seconds: float) -> None:
        """Let an exact usage improve later estimates."""
        if self._exact is not None:
            self._rates.learn(self._call, self._exact, seconds, self.events_seen)


class WholeMeter(Meter):
    """An answer that does not stream: usage stands near its end."""

    def __init__(self, call: Call, rates: Rates) -> None:
        super().__init__(call, rates)
        self._tail = b""

    def scan(self, block: bytes) -> None:
        self._tail = (self._tail + block)[-TAIL_BYTES:]

    def close(self) -> None:
        dialect = self._call.dialect
        self._exact = _last_usage(self._tail, dialect.counts) if dialect.is_billed else Usage()

    def _estimate(self, seconds: float) -> Usage:
        if not self._call.dialect.is_billed:
            return Usage()
        prompt_tokens = self._rates.prompt_tokens(self._call)
        if self._call.dialect.stream is None:
            return Usage(prompt_tokens=prompt_tokens, estimated_by=PROMPT_BYTES)
        made = round(seconds * self._rates.tokens_per_s)
        limit = self._call.output_tokens_max
        each = made if limit is None else min(made, limit)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=each * self._call.sequences,
            estimated_by=BYTES_SENT_TIME_ELAPSED,
        )


_CHOICE = re.compile(
    rb'"choices":\[\{"index":(\d+),[^\n]*"usage":\{"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)'
)


class ChunkMeter(Meter):
    """Chat and completions: every chunk says what its own choice has cost so far, the last one what all have."""

    def __init__(self, call: Call, rates: Rates) -> None:
        super().__init__(call, rates)
        self._last = b""
        #: Per choice: its prompt's tokens, its own tokens. Only filled when there are several.
        self._choices: dict[int, tuple[int, int]] = {}

    def scan(self, block: bytes) -> None:
        if b'"choices":[],"usage":' in block:
            self._exact = _last_usage(block, self._call.dialect.counts)
        elif self._call.sequences > 1:
            for index, prompt, completion in _CHOICE.findall(block):
                self._choices[int(index)] = int(prompt), int(completion)
        elif b'"usage":' in block:
            self._last = block

    def conclude(self, block: bytes) -> None:
        # As exact as any: nothing that the engine made afterwards is in the answer.
        self.scan(block)

    def _estimate(self, seconds: float) -> Usage:
        so_far = self._several() if self._choices else _last_usage(self._last, self._call.dialect.counts)
        if so_far is None:
            return Usage(prompt_tokens=self._rates.prompt_tokens(self._call), estimated_by=PROMPT_BYTES)
        return msgspec.structs.replace(so_far, estimated_by=LAST_CHUNK)

    def _several(self) -> Usage:
        # Choices of one prompt stand side by side; their prompt is read once.
        prompts = {index // self._call.choices: prompt for index, (prompt, _) in self._choices.items()}
        return Usage(
            prompt_tokens=sum(prompts.values()),
            completion_tokens=sum(completion for _, completion in self._choices.values()),
        )


class EventMeter(Meter):
    """Responses and Messages: typed events; the last one carries usage, and the first one of Messages the prompt's."""

    def __init__(self, call: Call, rates: Rates, stream: EventStream) -> None:
        super().__init__(call, rates)
        self._stream = stream
        self._texts = 0
        self._events = 0
        self._started: Usage | None = None

    @property
    def events_seen(self) -> int:
        return self._texts

    @property
    def events_passed(self) -> int:
        return self._events

    def scan(self, block: bytes) -> None:
        self._events += block.count(b"\nevent: ") + block.startswith(b"event: ")
        self._texts += block.count(self._stream.text_event)
        for name in self._stream.last_events:
            start = block.rfind(name)
            if start >= 0:
                self._exact = _last_usage(block[start:], self._call.dialect.counts) or self._estimate(0.0)
        if self._started is None and self._stream.first_event is not None:
            start = block.find(self._stream.first_event)
            if start >= 0:
                self._started = _last_usage(block[start:].partition(b"\n\n")[0], self._call.dialect.counts)

    def _estimate(self, seconds: float) -> Usage:
        made = round(self._texts * self._rates.tokens_per_event)
        prompt_tokens = self._started.prompt_tokens if self._started else self._rates.prompt_tokens(self._call)
        rule = EVENTS_SEEN if self._events else PROMPT_BYTES
        return Usage(prompt_tokens=prompt_tokens, completion_tokens=made, estimated_by=rule)


def meter_for(call: Call, rates: Rates) -> Meter:
    """The meter for the answer to `call`."""
    stream = call.dialect.stream if call.is_streamed or call.is_assembled else None
    if isinstance(stream, ChunkStream):
        return ChunkMeter(call, rates)
    return EventMeter(call, rates, stream) if isinstance(stream, EventStream) else WholeMeter(call, rates)
