"""Estimates: what a call will probably cost, learned per model and route from the exact usages of the calls before it.

One answer of an engine or a client moves a rate by a bounded step only, and answers too short to tell a rate teach none.
The gateway never tokenises: 8,000 tokens would hold the event loop for 95 ms (measured on 2 cores).
"""

from __future__ import annotations

import math

import msgspec

from serving.gateway.dialects.call import Call
from serving.gateway.dialects.conversation import BLOCK_BYTES
from serving.gateway.fleet.router import NO_NEED, Need
from serving.gateway.nouns import Usage

# Before anything was learned: English text has about 4 bytes a token; a slow engine makes 20 tokens a second.
BYTES_PER_PROMPT_TOKEN = 4.0
TOKENS_PER_S = 20.0
TOKENS_PER_EVENT = 1.0
OUTPUT_TOKENS_PER_SEQUENCE = 256.0
# Tokens that open a part of an answer and are in no event: Harmony's (RLY-31), until an answer says otherwise.
FIRST_PART_TOKENS = 3.0
NEXT_PART_TOKENS = 6.0
TOOL_PART_TOKENS = 15.0
#: No rate is learned beyond these: 16 bytes a token (words are shorter), 1,000 tokens a second of one sequence (the fastest
#: engines make several hundred), 16 tokens an event, 64 tokens to open a part.
BYTES_PER_PROMPT_TOKEN_RANGE = (1.0, 16.0)
TOKENS_PER_S_MAX = 1000.0
TOKENS_PER_EVENT_RANGE = (0.5, 16.0)
PART_TOKENS_RANGE = (0.0, 64.0)
#: An answer shorter than either teaches no speed: two tokens in a millisecond say nothing about a second.
SPEED_TOKENS_MIN = 32
SPEED_SECONDS_MIN = 0.5
#: Events from which an answer teaches how many tokens each holds; a shorter one teaches what opens its parts.
LONG_EVENTS = 32
#: Weight of the newest observation in a moving average: about the last 20 calls count.
LEARNING_RATE = 0.1


class Seen(msgspec.Struct, frozen=True):
    """What a stream of typed events has shown."""

    #: Events that carried text.
    texts: int = 0
    #: Parts that were opened: reasoning, text, calls of tools; and of them, the calls.
    parts: int = 0
    tool_parts: int = 0


_NOTHING = Seen()


class Average(msgspec.Struct):
    """A moving average that takes its first observations as they are."""

    value: float
    count: int = 0

    def learn(self, observed: float, within: tuple[float, float]) -> None:
        self.count += 1
        weight = max(LEARNING_RATE, 1 / self.count)
        self.value += weight * (_bounded(observed, within) - self.value)


class Rates(msgspec.Struct):
    """What was learned about one model on one route."""

    bytes_per_prompt_token: float = BYTES_PER_PROMPT_TOKEN
    tokens_per_s: float = TOKENS_PER_S
    tokens_per_event: float = TOKENS_PER_EVENT
    output_tokens_per_sequence: float = OUTPUT_TOKENS_PER_SEQUENCE
    first_part: Average = msgspec.field(default_factory=lambda: Average(FIRST_PART_TOKENS))
    next_part: Average = msgspec.field(default_factory=lambda: Average(NEXT_PART_TOKENS))
    tool_part: Average = msgspec.field(default_factory=lambda: Average(TOOL_PART_TOKENS))

    def prompt_tokens(self, call: Call) -> int:
        return self.tokens_of(len(call.body))

    def tokens_of(self, body_bytes: int) -> int:
        """Tokens of the prompt in a body of that size."""
        return round(body_bytes / self.bytes_per_prompt_token)

    def need(self, call: Call) -> Need:
        """What the call asks of a replica."""
        if not call.dialect.is_billed:
            return NO_NEED
        tokens_per_block = BLOCK_BYTES / self.bytes_per_prompt_token
        return Need(self.prompt_tokens(call), self.output_tokens(call), call.prefix, tokens_per_block)

    def output_tokens(self, call: Call) -> float:
        """What this call will probably generate: the mean of those before it, within its own limit."""
        if not call.dialect.is_billed or call.dialect.stream is None:
            return 0.0
        limit = math.inf if call.output_tokens_max is None else call.output_tokens_max
        return call.sequences * min(limit, self.output_tokens_per_sequence)

    def streamed_tokens(self, seen: Seen) -> int:
        """What an engine has made when its stream of typed events has come this far."""
        return round(self._opening_tokens(seen) + seen.texts * self.tokens_per_event)

    def learn(self, call: Call, usage: Usage, seconds: float, seen: Seen = _NOTHING) -> None:
        """Take in one exact usage."""
        if usage.prompt_tokens:
            self.bytes_per_prompt_token = _moved(
                self.bytes_per_prompt_token, len(call.body) / usage.prompt_tokens, BYTES_PER_PROMPT_TOKEN_RANGE
            )
        if not usage.completion_tokens:
            return
        each = usage.completion_tokens / call.sequences
        self.output_tokens_per_sequence += LEARNING_RATE * (each - self.output_tokens_per_sequence)
        if each >= SPEED_TOKENS_MIN and seconds >= SPEED_SECONDS_MIN:
            self.tokens_per_s = _moved(self.tokens_per_s, each / seconds, (0.0, TOKENS_PER_S_MAX))
        if seen.texts:
            self._learn_stream(usage.completion_tokens, seen)

    def _learn_stream(self, tokens: int, seen: Seen) -> None:
        if seen.texts >= LONG_EVENTS or not seen.parts:
            # The last token, which ends an answer, opens nothing and is in no event.
            in_events = tokens - self._opening_tokens(seen) - bool(seen.parts)
            self.tokens_per_event = _moved(self.tokens_per_event, in_events / seen.texts, TOKENS_PER_EVENT_RANGE)
            return
        opening = tokens - 1 - seen.texts * self.tokens_per_event
        if seen.tool_parts:
            others = self._opening_tokens(
                msgspec.structs.replace(seen, tool_parts=0, parts=seen.parts - seen.tool_parts)
            )
            self.tool_part.learn((opening - others) / seen.tool_parts, PART_TOKENS_RANGE)
        elif seen.parts == 1:
            self.first_part.learn(opening, PART_TOKENS_RANGE)
        else:
            self.next_part.learn((opening - self.first_part.value) / (seen.parts - 1), PART_TOKENS_RANGE)

    def _opening_tokens(self, seen: Seen) -> float:
        others = seen.parts - seen.tool_parts
        opened = self.first_part.value + (others - 1) * self.next_part.value if others else 0.0
        return opened + seen.tool_parts * self.tool_part.value


def _bounded(observed: float, within: tuple[float, float]) -> float:
    least, most = within
    return min(max(observed, least), most)


def _moved(rate: float, observed: float, within: tuple[float, float]) -> float:
    return rate + LEARNING_RATE * (_bounded(observed, within) - rate)


class Estimates:
    """Model and route → what was learned there. Only models that an engine was asked for are kept: names are a client's."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, str], Rates] = {}

    def rates(self, model: str, route: str) -> Rates:
        """What is known now; the defaults for a model without a call."""
        return self._rates.get((model, route)) or Rates()

    def kept(self, model: str, route: str) -> Rates:
        """The rates that this model's calls on this route improve."""
        return self._rates.setdefault((model, route), Rates())
