"""Measure: calls to an API as a client makes them, and their latencies. Closed loops of streams."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

#: Words of load prompts: about a token each. No two prompts share a prefix, so the prefix cache does not help.
WORDS = ("time", "house", "water", "light", "stone", "green", "river", "table", "paper", "music", "north", "glass")
#: Seconds that a call may take; the gateway's own limit ends it earlier.
CALL_TIMEOUT_S = 600.0
#: Seconds a client waits after a call that failed.
PAUSE_S = 0.2


class Bounds(msgspec.Struct, frozen=True):
    """How long and how hard to measure."""

    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seconds_per_step: float = 60.0
    prompt_words: int = 512
    output_tokens: int = 128
    #: Seconds within which a disrupted fleet must be complete again: a cold start with the largest checkpoint.
    recovery_s: float = 1800.0


class Target(msgspec.Struct, frozen=True):
    """An API and how to reach it."""

    base_url: str
    session: aiohttp.ClientSession
    clock: Callable[[], float]

    def url(self, path: str) -> str:
        return f"{self.base_url.rstrip('/').removesuffix('/v1')}/v1{path}"


class MeasuredCall(msgspec.Struct, frozen=True):
    """One streamed call."""

    started_at: float
    ended_at: float
    #: When each event with text arrived.
    events_at: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    #: What went wrong: a word of ours, or the API's code; empty for a complete answer.
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.events_at[0] - self.started_at

    @property
    def gaps_s(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.events_at, self.events_at[1:], strict=False)]

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds a token after the first, by the tokens billed."""
        if self.output_tokens < 2 or len(self.events_at) < 2:
            return None
        return (self.events_at[-1] - self.events_at[0]) / (self.output_tokens - 1)


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Error(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


def prompt(words: int, chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=words))


async def stream(target: Target, model: str, text: str, output_tokens: int) -> MeasuredCall:
    """One chat, streamed to its end; a failure is in the result and not raised."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": output_tokens,
        # Every answer is as long as asked for, so that steps can be compared.
        "min_tokens": output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = target.clock()
    seen = _Seen()
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            async with target.session.post(target.url("/chat/completions"), json=body) as response:
                if response.status != 200:
                    seen.error = _code(await response.read(), response.status)
                else:
                    await seen.read(response, target.clock)
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
        seen.error = seen.error or type(error).__name__
    return MeasuredCall(
        began,
        target.clock(),
        tuple(seen.events_at),
        seen.usage.prompt_tokens,
        seen.usage.completion_tokens,
        seen.error or ("" if seen.is_done else "cut without an error event"),
    )


class _Seen:
    """What has been received of a stream so far."""

    def __init__(self) -> None:
        self.events_at: list[float] = []
        self.usage = _Usage()
        self.error = ""
        self.is_done = False

    async def read(self, response: aiohttp.ClientResponse, clock: Callable[[], float]) -> None:
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                self.is_done = True
                continue
            event = msgspec.json.decode(line[6:], type=_Event)
            if event.error:
                self.error = f"{event.error.code or event.error.type or 'error'} in the stream"
            self.usage = event.usage or self.usage
            if any(it.delta.content or it.delta.reasoning or it.delta.reasoning_content for it in event.choices):
                self.events_at.append(clock())


class _ErrorBody(msgspec.Struct):
    error: _Error


def _code(content: bytes, status: int) -> str:
    """The API's own code, never its sentence: that may quote what was sent."""
    try:
        error = msgspec.json.decode(content, type=_ErrorBody).error
    except msgspec.DecodeError:
        return f"HTTP {status}"
    return f"HTTP {status} {error.code or error.type or ''}".strip()


class Percentiles(msgspec.Struct, frozen=True):
    """Of one quantity, in seconds."""

    p50: float
    p90: float
    p99: float


class Step(msgspec.Struct, frozen=True):
    """One rung of the ladder. Errors first: what fails is fast."""

    concurrency: int
    calls: int
    errors: Mapping[str, int]
    #: Of the calls that succeeded; prompts as the API billed them.
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_s: Percentiles | None
    itl_s: Percentiles | None
    tpot_s: Percentiles | None

    @property
    def error_share(self) -> float:
        return sum(self.errors.values()) / self.calls if self.calls else 1.0


def step(concurrency: int, outcomes: Sequence[MeasuredCall]) -> Step:
    """What the outcomes of one rung say together."""
    whole = [it for it in outcomes if not it.error and it.events_at]
    span = max((it.ended_at for it in outcomes), default=0.0) - min((it.started_at for it in outcomes), default=0.0)
    output, prompts = (sum(it.output_tokens for it in whole), sum(it.prompt_tokens for it in whole))
    return Step(
        concurrency=concurrency,
        calls=len(outcomes),
        errors=dict(Counter(it.error or "no token" for it in outcomes if it.error or not it.events_at)),
        output_tokens_per_s=output / span if span else 0.0,
        total_tokens_per_s=(output + prompts) / span if span else 0.0,
        ttft_s=percentiles([it.ttft_s for it in whole]),
        itl_s=percentiles([gap for it in whole for gap in it.gaps_s]),
        tpot_s=percentiles([it.tpot_s for it in whole if it.tpot_s is not None]),
    )


def percentiles(values: Sequence[float]) -> Percentiles | None:
    if not values:
        return None
    if len(values) == 1:
        return Percentiles(values[0], values[0], values[0])
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return Percentiles(cuts[49], cuts[89], cuts[98])


async def closed_loop(
    target: Target, model: str, concurrency: int, words: int, output_tokens: int, seconds: float
) -> list[MeasuredCall]:
    """A number of clients, each starting its next call when one ends, for `seconds`; each one's first call is warm-up."""
    until = target.clock() + seconds
    clients = (_client(target, model, words, output_tokens, until) for _ in range(concurrency))
    per_client = await asyncio.gather(*clients)
    return [outcome for outcomes in per_client for outcome in outcomes[1:]]


async def _client(target: Target, model: str, words: int, output_tokens: int, until: float) -> list[MeasuredCall]:
    """At least two calls: one to warm up and one that counts."""
    chance = random.Random()  # noqa: S311 -- Prompts must differ, no more.
    outcomes: list[MeasuredCall] = []
    while target.clock() < until or len(outcomes) < 2:
        outcomes.append(await stream(target, model, prompt(words, chance), output_tokens))
        if outcomes[-1].error:
            # A refusal comes at once: without a pause, clients would flood a broken installation.
            await asyncio.sleep(PAUSE_S)
    return outcomes


class Greedy(msgspec.Struct, frozen=True):
    """A greedy answer: its text, the ids of its tokens, and at each place the likeliest with their log probabilities."""

    text: str = ""
    tokens: tuple[str, ...] = ()
    likeliest: tuple[Mapping[str, float], ...] = ()
    error: str = ""


class _Logprobs(msgspec.Struct):
    tokens: list[str] = []
    top_logprobs: list[dict[str, float] | None] = []


class _Completed(msgspec.Struct):
    text: str = ""
    logprobs: _Logprobs | None = None


class _Completion(msgspec.Struct):
    choices: list[_Completed]


async def greedy(target: Target, model: str, text: str, output_tokens: int) -> Greedy:
    """The likeliest continuation of a text."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": text,
        "max_tokens": output_tokens,
        "temperature": 0,
        "logprobs": 5,
        "return_tokens_as_token_ids": True,
    }
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            async with target.session.post(target.url("/completions"), json=body) as response:
                content = await response.read()
                if response.status != 200:
                    return Greedy(error=_code(content, response.status))
        (choice, *_) = msgspec.json.decode(content, type=_Completion).choices
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, ValueError) as error:
        return Greedy(error=type(error).__name__)
    if not choice.text:
        return Greedy(error="empty answer")
    said = choice.logprobs or _Logprobs()
    return Greedy(choice.text, tuple(said.tokens), tuple(it or {} for it in said.top_logprobs))
