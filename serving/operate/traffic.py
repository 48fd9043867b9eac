"""Traffic: what a fleet is planned for: calls a second and their lengths, said by hand or read from a trace."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from serving.errors import Refusal

#: Seconds over which a trace's busiest moment is measured: shorter than an engine's start, so no fleet grows within it.
PEAK_WINDOW_S = 60.0
#: Tokens of one block of Mooncake's prefix hashes (its README).
_BLOCK_TOKENS = 512
#: Tokens that no call has: a figure beyond is no count.
_TOKENS_MAX = 2**31


class Traffic(msgspec.Struct, frozen=True):
    """One model's calls. Lengths are means."""

    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    #: Share of prompt tokens that an earlier call of the same tenant began with, 0 to below 1.
    prefix_share: float = 0.0
    #: The busiest minute over the mean.
    peak_ratio: float = 1.0
    #: Where these come from.
    source: str = "given"

    @property
    def peak_per_s(self) -> float:
        return self.requests_per_s * self.peak_ratio


class _Call(msgspec.Struct, frozen=True):
    arrived_at: float
    prompt_tokens: int
    output_tokens: int
    #: Prompt tokens in blocks that an earlier call had at the same place.
    shared_tokens: int = 0


def read_trace(path: Path) -> Traffic:
    """The traffic in a trace of Azure's form (CSV: TIMESTAMP, ContextTokens, GeneratedTokens) or Mooncake's (JSON lines:
    `timestamp` in ms, `input_length`, `output_length`, `hash_ids`). Raises Refusal."""
    try:
        with path.open() as file:
            calls = list(_azure(csv.DictReader(file)) if path.suffix == ".csv" else _mooncake(map(json.loads, file)))
    except OSError as error:
        raise Refusal(f"The trace {path} cannot be read: {error.strerror}.") from None
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, csv.Error) as error:
        raise Refusal(
            f"The trace {path} is neither Azure's CSV (TIMESTAMP, ContextTokens, GeneratedTokens) nor Mooncake's JSON lines"
            f" (timestamp, input_length, output_length): {type(error).__name__}."
        ) from None
    calls.sort(key=lambda it: it.arrived_at)
    if len(calls) < 2 or calls[-1].arrived_at <= calls[0].arrived_at:
        raise Refusal(f"The trace {path} has too few calls to say how often they come.")
    span_s = calls[-1].arrived_at - calls[0].arrived_at
    prompts = sum(it.prompt_tokens for it in calls)
    rate = len(calls) / span_s
    return Traffic(
        requests_per_s=rate,
        prompt_tokens=prompts / len(calls),
        output_tokens=sum(it.output_tokens for it in calls) / len(calls),
        prefix_share=sum(it.shared_tokens for it in calls) / prompts,
        peak_ratio=max(1.0, _busiest(calls) / min(PEAK_WINDOW_S, span_s) / rate),
        source=f"trace {path.name}: {len(calls)} calls in {span_s:.0f} s",
    )


def _busiest(calls: list[_Call]) -> int:
    windows = Counter(int((it.arrived_at - calls[0].arrived_at) // PEAK_WINDOW_S) for it in calls)
    return max(windows.values())


def _azure(rows: Iterator[dict[str, Any]] | csv.DictReader[str]) -> Iterator[_Call]:
    for row in rows:
        # Python reads six digits of a fraction; the trace has seven.
        arrived_at = datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC).timestamp()
        yield _call(arrived_at, int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _mooncake(rows: Iterator[dict[str, Any]]) -> Iterator[_Call]:
    seen: set[int] = set()
    for row in rows:
        prompt, blocks = int(row["input_length"]), row.get("hash_ids", [])
        fresh = next((place for place, block in enumerate(blocks) if block not in seen), len(blocks))
        seen.update(blocks)
        shared = min(fresh * _BLOCK_TOKENS, prompt)
        yield _call(row["timestamp"] / 1000, prompt, int(row["output_length"]), shared)


def _call(arrived_at: float, prompt_tokens: int, output_tokens: int, shared_tokens: int = 0) -> _Call:
    """Raises ValueError for what no call can be."""
    if not (math.isfinite(arrived_at) and 1 <= prompt_tokens <= _TOKENS_MAX and 0 <= output_tokens <= _TOKENS_MAX):
        raise ValueError("a call of no length, or at no time")
    return _Call(arrived_at, prompt_tokens, max(1, output_tokens), shared_tokens)
