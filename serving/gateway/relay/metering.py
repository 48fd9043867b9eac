"""Metering: how many tokens a call cost, read off the bytes as they pass, or estimated by a named rule when they stop.

| rule | when | how |
|---|---|---|
| (exact) | the engine said it at the end | its own usage |
| `last_chunk` | a chat or completion stream was cut | the usage in its last chunk; tokens under way then are not counted |
| `events_seen` | a Responses or Messages stream was cut | events that carried text × tokens per event, prompt as said or by bytes |
| `prompt_bytes` | an embedding or a stream was cut before its first chunk | bytes of the body ÷ bytes per token |
| `bytes_sent_time_elapsed` | a call that does not stream was cut | prompt by bytes; seconds × tokens per second, within the client's limit |

Bytes per token, tokens per second and tokens per event are learned per model from exact usages.
"""

from __future__ import annotations

import math
import re

import msgspec

from serving.gateway.dialects.calls import Call
from serving.gateway.dialects.routes import MESSAGES, RESPONSES, StreamKind
from serving.gateway.ledger.ledger import Usage
from serving.gateway.relay.events import DONE

LAST_CHUNK = "last_chunk"
EVENTS_SEEN = "events_seen"
PROMPT_BYTES = "prompt_bytes"
BYTES_SENT_TIME_ELAPSED = "bytes_sent_time_elapsed"

# Before anything was learned: English text has about 4 bytes a token; a slow engine makes 20 tokens a second.
BYTES_PER_PROMPT_TOKEN = 4.0
TOKENS_PER_S = 20.0
TOKENS_PER_EVENT = 1.0
OUTPUT_TOKENS_PER_SEQUENCE = 256.0
#: Weight of the newest observation in a moving average: about the last 20 calls count.
LEARNING_RATE = 0.1

#: Bytes kept from the end of an unstreamed answer: usage stands after the choices, followed by a few nulls.
TAIL_BYTES = 8 * 1024


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0
    reasoning_tokens: int | None = 0


class _ChatUsage(msgspec.Struct):
    """`UsageInfo`: chat, completions, embeddings."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens or 0,
            cached_prompt_tokens=(self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0,
            reasoning_tokens=(self.completion_tokens_details and self.completion_tokens_details.reasoning_tokens) or 0,
        )


class _ResponsesUsage(msgspec.Struct):
    """`ResponseUsage`."""

    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.input_tokens,
            completion_tokens=self.output_tokens,
            cached_prompt_tokens=(self.input_tokens_details and self.input_tokens_details.cached_tokens) or 0,
            reasoning_tokens=(self.output_tokens_details and self.output_tokens_details.reasoning_tokens) or 0,
        )


class _MessagesUsage(msgspec.Struct):
    """`AnthropicUsage`: input tokens exclude what the cache gave or took."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int | None = 0
    cache_creation_input_tokens: int | None = 0

    def usage(self) -> Usage:
        read = self.cache_read_input_tokens or 0
        return Usage(
            prompt_tokens=self.input_tokens + read + (self.cache_creation_input_tokens or 0),
            completion_tokens=self.output_tokens,
            cached_prompt_tokens=read,
        )


_USAGE_OBJECT = re.compile(rb'"usage": ?(\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\})')
_Counts = _ChatUsage | _ResponsesUsage | _MessagesUsage


def _counts_of(call: Call) -> type[_ChatUsage] | type[_ResponsesUsage] | type[_MessagesUsage]:
    if call.route is RESPONSES:
        return _ResponsesUsage
    return _MessagesUsage if call.route is MESSAGES else _ChatUsage


def _last_usage(data: bytes, kind: type[_Counts]) -> Usage | None:
    """The last usage object in `data`: what a client may have had echoed stands before it."""
    start = data.rfind(b'"usage":')
    found = _USAGE_OBJECT.match(data, start) if start >= 0 else None
    if found is None:
        return None
    try:
        return msgspec.json.decode(found[1], type=kind).usage()
    except msgspec.DecodeError:
        return None


class Rates(msgspec.Struct):
    """What was learned about one model."""

    bytes_per_prompt_token: float = BYTES_PER_PROMPT_TOKEN
    tokens_per_s: float = TOKENS_PER_S
    tokens_per_event: float = TOKENS_PER_EVENT
    output_tokens_per_sequence: float = OUTPUT_TOKENS_PER_SEQUENCE

    def prompt_tokens(self, call: Call) -> int:
        return round(len(call.body) / self.bytes_per_prompt_token)

    def output_tokens(self, call: Call) -> float:
        """What this call will probably generate: the mean of those before it, within its own limit."""
        if not call.route.is_billed or call.route.streams is StreamKind.NONE:
            return 0.0
        limit = math.inf if call.output_tokens_max is None else call.output_tokens_max
        return call.sequences * min(limit, self.output_tokens_per_sequence)

    def learn(self, call: Call, usage: Usage, seconds: float, events: int) -> None:
        """Take in one exact usage."""
        if usage.completion_tokens:
            each = usage.completion_tokens / call.sequences
            self.output_tokens_per_sequence += LEARNING_RATE * (each - self.output_tokens_per_sequence)
        if usage.prompt_tokens:
            self.bytes_per_prompt_token += LEARNING_RATE * (
                len(call.body) / usage.prompt_tokens - self.bytes_per_prompt_token
            )
        if usage.completion_tokens and seconds > 0:
            speed = usage.completion_tokens / call.sequences / seconds
            self.tokens_per_s += LEARNING_RATE * (speed - self.tokens_per_s)
        if usage.completion_tokens and events:
            self.tokens_per_event += LEARNING_RATE * (usage.completion_tokens / events - self.tokens_per_event)


class Meter:
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

    def scan(self, block: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """The answer is complete."""

    def usage(self, seconds: float) -> Usage:
        """Exact when finished, else estimated; `seconds` since the engine got the call."""
        return self._exact or self._estimate(seconds)

    def _estimate(self, seconds: float) -> Usage:
        raise NotImplementedError

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
        self._exact = _last_usage(self._tail, _counts_of(self._call)) if self._call.route.is_billed else Usage()

    def _estimate(self, seconds: float) -> Usage:
        if not self._call.route.is_billed:
            return Usage()
        prompt_tokens = self._rates.prompt_tokens(self._call)
        if self._call.route.streams is StreamKind.NONE:
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
            self._exact = _last_usage(block, _ChatUsage)
        elif self._call.sequences > 1:
            for index, prompt, completion in _CHOICE.findall(block):
                self._choices[int(index)] = int(prompt), int(completion)
        elif b'"usage":' in block:
            self._last = block

    def _estimate(self, seconds: float) -> Usage:
        so_far = self._several() if self._choices else _last_usage(self._last, _ChatUsage)
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
    """Responses and Messages: typed events; the last one carries usage."""

    #: Names of the events after which nothing but usage follows, and of those that carry text.
    last_events: tuple[bytes, ...] = ()
    text_event = b""

    def __init__(self, call: Call, rates: Rates) -> None:
        super().__init__(call, rates)
        self._texts = 0
        self._events = 0

    @property
    def events_seen(self) -> int:
        return self._texts

    @property
    def events_passed(self) -> int:
        return self._events

    def scan(self, block: bytes) -> None:
        self._events += block.count(b"\nevent: ") + block.startswith(b"event: ")
        self._texts += block.count(self.text_event)
        for name in self.last_events:
            start = block.rfind(name)
            if start >= 0:
                self._exact = _last_usage(block[start:], _counts_of(self._call)) or self._estimate(0.0)

    def _prompt_tokens(self) -> int:
        return self._rates.prompt_tokens(self._call)

    def _estimate(self, seconds: float) -> Usage:
        made = round(self._texts * self._rates.tokens_per_event)
        rule = EVENTS_SEEN if self._events else PROMPT_BYTES
        return Usage(prompt_tokens=self._prompt_tokens(), completion_tokens=made, estimated_by=rule)


class ResponsesMeter(EventMeter):
    last_events = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")
    text_event = b".delta\ndata: "


class MessagesMeter(EventMeter):
    last_events = (b"event: message_delta\n",)
    text_event = b"event: content_block_delta\n"

    def __init__(self, call: Call, rates: Rates) -> None:
        super().__init__(call, rates)
        self._started: Usage | None = None

    def scan(self, block: bytes) -> None:
        super().scan(block)
        start = block.find(b"event: message_start\n") if self._started is None else -1
        if start >= 0:
            self._started = _last_usage(block[start:].partition(b"\n\n")[0], _MessagesUsage)

    def _prompt_tokens(self) -> int:
        return self._started.prompt_tokens if self._started else super()._prompt_tokens()


_STREAM_METERS: dict[StreamKind, type[ChunkMeter] | type[EventMeter]] = {
    StreamKind.CHUNKS: ChunkMeter,
    StreamKind.RESPONSES: ResponsesMeter,
    StreamKind.MESSAGES: MessagesMeter,
}

#: How a complete stream ends; one that stops without it has failed.
ENDINGS: dict[StreamKind, tuple[bytes, ...]] = {
    StreamKind.CHUNKS: (DONE,),
    StreamKind.RESPONSES: ResponsesMeter.last_events,
    StreamKind.MESSAGES: (b"event: message_stop\n",),
}


def meter_for(call: Call, rates: Rates) -> Meter:
    """The meter for the answer to `call`."""
    return _STREAM_METERS[call.route.streams](call, rates) if call.is_streamed else WholeMeter(call, rates)
