"""Traffic: a trace, overlaid on itself until the wanted load is reached; or generated conversations, where no trace is at hand.

Each copy of a trace is another tenant: it begins somewhere else in it, by a seed, and shares no prefix with the others. So the
turns of a conversation stay as far apart as they were.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from loadtest.scaling.traces import BLOCK_TOKENS, TracedCall

#: Between the ids of two copies' blocks.
APART = 1_000_000_000
#: Blocks by which calls of one conversation are told: the first is a system prompt that all of a tenant's share.
OPENING_BLOCKS = 2


def overlaid(source: Sequence[TracedCall], tokens_per_s: float, span_s: float, seed: int) -> list[TracedCall]:
    """Calls of `span_s` seconds that ask for about `tokens_per_s` prompt tokens a second; of the last copy some conversations only."""
    chance = random.Random(seed)  # noqa: S311 -- A repeatable hour, no secret.
    wanted = tokens_per_s * span_s
    calls: list[TracedCall] = []
    for copy in range(1, 1_000):
        taken = list(_copy(source, chance.uniform(0, source[-1].arrived_at), span_s, copy * APART))
        tokens = sum(call.prompt_tokens for call in taken)
        calls += taken if tokens <= wanted else _thinned(taken, wanted / tokens, chance)
        wanted -= tokens
        if wanted <= 0:
            break
    return sorted(calls, key=lambda call: call.arrived_at)


def _copy(source: Sequence[TracedCall], begins_s: float, span_s: float, offset: int) -> Iterator[TracedCall]:
    """`span_s` from somewhere on; behind its end the trace begins anew, with conversations of its own."""
    whole_s = source[-1].arrived_at
    for call in source:
        is_behind = call.arrived_at < begins_s
        arrived_at = call.arrived_at - begins_s + is_behind * whole_s
        if arrived_at < span_s:
            own = offset + is_behind * APART // 2
            yield replace(call, arrived_at=arrived_at, blocks=tuple(_mixed(block + own) for block in call.blocks))


def _mixed(block: int) -> int:
    """Ids as a gateway has them: spread over 64 bits."""
    return block * 0x9E3779B97F4A7C15 % 2**64


def _thinned(calls: Sequence[TracedCall], share: float, chance: random.Random) -> list[TracedCall]:
    kept: dict[tuple[int, ...], bool] = {}
    return [call for call in calls if kept.setdefault(call.blocks[:OPENING_BLOCKS], chance.random() < share)]


def conversations(count: int, span_s: float, seed: int) -> list[TracedCall]:
    """Conversations of one to eight turns, half a minute apart; each prompt has all before it, which grows by 1,000 tokens a turn."""
    chance = random.Random(seed)  # noqa: S311
    calls = []
    for number in range(count):
        at, blocks = chance.uniform(0, span_s), [0]
        for turn in range(chance.randint(1, 8)):
            grown = max(1, round(chance.expovariate(1 / 2)))
            blocks += [(number + 1) * 1_000 + len(blocks) + it for it in range(grown + 4 * (turn == 0))]
            output = 1 + round(chance.expovariate(1 / 200))
            calls.append(TracedCall(at, len(blocks) * BLOCK_TOKENS, output, tuple(blocks)))
            at += chance.expovariate(1 / 30)
    return sorted((call for call in calls if call.arrived_at < span_s), key=lambda call: call.arrived_at)
