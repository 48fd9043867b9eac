"""Calibration: how far is the replica model from a real vLLM?

    python -m loadtest.scaling.calibration measure URL MODEL FILE [--key KEY] [--concurrencies 1,2,4,8,16] …
    python -m loadtest.scaling.calibration compare FILE

`measure` drives an OpenAI-compatible URL with closed loops (each of c clients calls again at once) and writes FILE, a
`Measurement` as JSON. `compare` fits the model's rates to every second point, replays all points in virtual time on the
judge's own Replica, and prints the relative errors, of the points it was not fitted to apart.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import aiohttp
import msgspec

from loadtest.scaling.model import ReplicaModel
from loadtest.scaling.simulator import Done, Replica
from loadtest.scaling.traces import TracedCall


class Point(msgspec.Struct, frozen=True):
    """One closed loop. Means over its calls, the first round of each client left out."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    calls: int
    ttft_s: float
    #: Mean gap between tokens after the first.
    itl_s: float


class Measurement(msgspec.Struct, frozen=True):
    """A measured run, and what it ran on."""

    #: Model, engine version, machine: for the reader.
    engine: str
    points: tuple[Point, ...]
    #: vLLM's --max-num-batched-tokens and --max-num-seqs in this run.
    chunk_tokens: int = 2048
    max_running: int = 256


#: Seconds between the calls of clients whose last calls ended in one step: HTTP is parsed one call after another. So
#: the first of them is computed in a step of its own and the others together in the next.
TURN_S = 0.002


#: The fit's steps, coarse to fine.
FACTORS = (1.5, 1.2, 1.08, 1.03)


class Comparison(msgspec.Struct, frozen=True):
    """A point beside what the model says of it; errors are (model - measured) / measured."""

    point: Point
    ttft_s: float
    itl_s: float
    is_fitted: bool

    @property
    def ttft_error(self) -> float:
        return self.ttft_s / self.point.ttft_s - 1

    @property
    def itl_error(self) -> float:
        return self.itl_s / self.point.itl_s - 1


def fit(points: Sequence[Point], chunk_tokens: int, max_running: int) -> ReplicaModel:
    """The model whose replayed closed loops come nearest; at least one point with one client.

    A guess from a lone call (its prompt and one step until the first token, then a step a token), then each rate up or
    down by ever smaller factors for as long as that helps.
    """
    alone = min(points, key=lambda point: (point.concurrency, point.prompt_tokens))
    model = ReplicaModel(
        prefill_tokens_per_s=alone.prompt_tokens / max(1e-6, alone.ttft_s - alone.itl_s),
        base_s=alone.itl_s,
        per_request_s=alone.itl_s / 50,
        kv_cache_tokens=10**9,  # Closed loops of this size never fill it.
        max_running=max_running,
        chunk_tokens=chunk_tokens,
    )
    for factor in FACTORS:
        before = None
        while model is not before:
            before, model = model, min((model, *_beside(model, factor)), key=partial(_distance, points))
    return model


def _beside(model: ReplicaModel, factor: float) -> list[ReplicaModel]:
    rates = ("prefill_tokens_per_s", "base_s", "per_request_s")
    return [replace(model, **{name: getattr(model, name) * by}) for name in rates for by in (factor, 1 / factor)]


def _distance(points: Sequence[Point], model: ReplicaModel) -> float:
    """How many times too long or too short, TTFT and ITL, as logarithms: too much weighs as much as too little."""
    replayed = [(point, *replay(model, point)) for point in points]
    return sum(
        abs(math.log(ttft_s / point.ttft_s)) + abs(math.log(itl_s / point.itl_s)) for point, ttft_s, itl_s in replayed
    )


def replay(model: ReplicaModel, point: Point) -> tuple[float, float]:
    """TTFT and ITL of the same closed loop on the modelled replica, in seconds."""
    replica = Replica(model, 1, ready_at=0.0)
    for client in range(point.concurrency):
        replica.take(TracedCall(client * TURN_S, point.prompt_tokens, point.output_tokens))
    done: list[Done] = []
    now = 0.0
    while len(done) < point.calls + point.concurrency:
        finished = replica.advance(now, now + TURN_S)
        now += TURN_S
        done.extend(finished)
        for turn, one in enumerate(finished, start=1):
            replica.take(TracedCall(one.finished_at + turn * TURN_S, point.prompt_tokens, point.output_tokens))
    settled = done[point.concurrency :]
    return statistics.fmean(one.ttft_s for one in settled), statistics.fmean(one.itl_s for one in settled)


def compare(measurement: Measurement) -> list[Comparison]:
    """Every point, fitted or not, beside the model's answer."""
    in_order = sorted(measurement.points, key=lambda point: (point.prompt_tokens, point.concurrency))
    fitted = in_order[::2]
    model = fit(fitted, measurement.chunk_tokens, measurement.max_running)
    return [Comparison(point, *replay(model, point), is_fitted=point in fitted) for point in in_order]


def report(measurement: Measurement) -> str:
    comparisons = compare(measurement)
    lines = [
        measurement.engine,
        "clients  prompt  output   TTFT s measured  model  error    ITL ms measured  model  error",
    ]
    for one in comparisons:
        point = one.point
        lines.append(
            f"{point.concurrency:7}{point.prompt_tokens:8}{point.output_tokens:8}"
            f"{point.ttft_s:17.3f}{one.ttft_s:7.3f}{one.ttft_error:+7.0%}"
            f"{point.itl_s * 1e3:19.1f}{one.itl_s * 1e3:7.1f}{one.itl_error:+7.0%}"
            f"{'' if one.is_fitted else '  not fitted'}"
        )
    for name, chosen in (("fitted", True), ("not fitted", False)):
        of_kind = [one for one in comparisons if one.is_fitted is chosen]
        if of_kind:
            ttft = statistics.fmean(abs(one.ttft_error) for one in of_kind)
            itl = statistics.fmean(abs(one.itl_error) for one in of_kind)
            lines.append(f"mean absolute error, {name}: TTFT {ttft:.0%}, ITL {itl:.0%}")
    return "\n".join(lines)


#: What prompts are made of: about a token each in every vocabulary, and no two prompts share a beginning.
WORDS = ("time", "house", "water", "light", "stone", "green", "river", "table", "paper", "music", "north", "glass")


class Client:
    """Closed loops against one OpenAI-compatible server."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, clock: Callable[[], float]) -> None:
        self._session = session
        self._url = f"{url.rstrip('/')}/v1/completions"
        self._model = model
        self._clock = clock
        self._chance = random.Random(time.time_ns())  # noqa: S311 -- Prompts must differ, no more.

    async def loop(self, concurrency: int, prompt_words: int, output_tokens: int, rounds: int) -> Point:
        """`concurrency` clients, each one round to warm up and `rounds` that count."""
        per_client = await asyncio.gather(
            *(self._client(prompt_words, output_tokens, rounds + 1) for _ in range(concurrency))
        )
        counted = [call for calls in per_client for call in calls[1:]]
        return Point(
            concurrency=concurrency,
            prompt_tokens=round(statistics.fmean(prompt for prompt, _, _ in counted)),
            output_tokens=output_tokens,
            calls=len(counted),
            ttft_s=statistics.fmean(ttft_s for _, ttft_s, _ in counted),
            itl_s=statistics.fmean(itl_s for _, _, itl_s in counted),
        )

    async def _client(self, prompt_words: int, output_tokens: int, rounds: int) -> list[tuple[int, float, float]]:
        return [await self._call(prompt_words, output_tokens) for _ in range(rounds)]

    async def _call(self, prompt_words: int, output_tokens: int) -> tuple[int, float, float]:
        """Prompt tokens as billed, TTFT and mean ITL of one call, in seconds."""
        body = {
            "model": self._model,
            "prompt": " ".join(self._chance.choices(WORDS, k=prompt_words)),
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began, arrivals, usage = self._clock(), [], _Usage()
        async with self._session.post(self._url, json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                event = msgspec.json.decode(line[6:], type=_Event)
                usage = event.usage or usage
                if event.choices:
                    arrivals.append(self._clock())
        if len(arrivals) < 2 or usage.completion_tokens != output_tokens:
            raise RuntimeError(f"Asked for {output_tokens} tokens, got {usage.completion_tokens}.")
        return usage.prompt_tokens, arrivals[0] - began, (arrivals[-1] - arrivals[0]) / (output_tokens - 1)


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None


async def measure(arguments: argparse.Namespace) -> Measurement:
    """Drive the server at every concurrency and prompt length."""
    headers = {"Authorization": f"Bearer {arguments.key}"} if arguments.key else {}
    points = []
    async with aiohttp.ClientSession(
        headers=headers, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
    ) as session:
        client = Client(session, arguments.url, arguments.model, time.perf_counter)
        for prompt_words in arguments.prompts:
            for concurrency in arguments.concurrencies:
                point = await client.loop(concurrency, prompt_words, arguments.output_tokens, arguments.rounds)
                print(point, flush=True)
                points.append(point)
    return Measurement(arguments.engine or arguments.model, tuple(points), arguments.chunk_tokens)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.scaling.calibration")
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    for name in ("url", "model", "file"):
        measuring.add_argument(name)
    measuring.add_argument("--key", help="bearer token: a gateway key, or the plane secret")
    measuring.add_argument("--engine", help="a line for the reader: model, version, machine")
    measuring.add_argument("--concurrencies", type=_numbers, default=[1, 2, 4, 8, 16])
    measuring.add_argument("--prompts", type=_numbers, default=[64, 512], help="prompt lengths in words")
    measuring.add_argument("--output-tokens", type=int, default=32)
    measuring.add_argument("--rounds", type=int, default=3, help="calls of each client that count")
    measuring.add_argument("--chunk-tokens", type=int, default=2048, help="the engine's --max-num-batched-tokens")
    comparing = commands.add_parser("compare")
    comparing.add_argument("file")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        Path(arguments.file).write_bytes(msgspec.json.encode(asyncio.run(measure(arguments))) + b"\n")
    print(report(msgspec.json.decode(Path(arguments.file).read_bytes(), type=Measurement)))


if __name__ == "__main__":
    main()
