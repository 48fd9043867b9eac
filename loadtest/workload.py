"""Workload: who comes, and with how much. From instants or a trace to sessions, by a seed.

Four users: chat asks once, an agent works through turns with tools, a document is long and its summary short, an
embedding has no stream. Sizes are medians of log-normal distributions: most are near them, some are several times as
long.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec

from loadtest.scaling.traces import TracedCall
from serving.errors import Refusal


class Kind(StrEnum):
    """A user."""

    CHAT = "chat"
    AGENT = "agent"
    DOCUMENT = "document"
    EMBEDDING = "embedding"


class Size(msgspec.Struct, frozen=True):
    """Medians of one user's sessions, in tokens a turn."""

    prompt_tokens: int
    output_tokens: int
    turns: int = 1


SIZES: Mapping[Kind, Size] = {
    Kind.CHAT: Size(200, 150),
    #: The prompt of the first turn; each later one adds its tools' answers.
    Kind.AGENT: Size(600, 80, turns=5),
    Kind.DOCUMENT: Size(6000, 200),
    Kind.EMBEDDING: Size(200, 0),
}
#: Spread of the log-normal sizes: two thirds lie between 0.55 and 1.8 times the median.
SIGMA = 0.6
#: Sizes end at this many medians, so that a seed decides little about a short run.
LONGEST = 4.0


class Session(msgspec.Struct, frozen=True, array_like=True):
    """One arrival. `due_s` is since the start of the run; tokens are those of the first turn's prompt and of each answer."""

    number: int
    due_s: float
    kind: Kind
    prompt_tokens: int
    output_tokens: int
    turns: int = 1


class Limits(msgspec.Struct, frozen=True):
    """What the models take, and how sizes are bent to it."""

    #: Tokens of prompt and output together; 0 when the API does not say.
    context_tokens: int = 0
    embedding_context_tokens: int = 0
    #: Every size is multiplied by this: a laptop's stack is not a cluster.
    scale: float = 1.0

    def of(self, kind: Kind) -> int:
        return self.embedding_context_tokens if kind is Kind.EMBEDDING else self.context_tokens


#: Tokens of a prompt's chat template, tools and rounding, kept free below the context.
MARGIN_TOKENS = 256


def read_mix(text: str) -> dict[Kind, float]:
    """`chat=8,agent=1` as weights; raises Refusal for whatever is none."""
    mix: dict[Kind, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            mix[Kind(name.strip())] = float(weight or 1)
        except ValueError:
            kinds = ", ".join(Kind)
            raise Refusal(f"'{part}' is no part of a mix: write user=weight, of {kinds}.") from None
    if min(mix.values()) < 0 or not 0 < sum(mix.values()) < math.inf:
        raise Refusal(f"The mix {text} sends no one: weights are 0 or more, and one is above 0.")
    return mix


def sessions(
    instants: Iterable[float], mix: Mapping[Kind, float], limits: Limits, chance: random.Random
) -> list[Session]:
    """A session for each instant, its user and sizes drawn."""
    kinds, weights = list(mix), list(mix.values())
    return [
        _session(number, due_s, chance.choices(kinds, weights)[0], limits, chance)
        for number, due_s in enumerate(instants)
    ]


def _session(number: int, due_s: float, kind: Kind, limits: Limits, chance: random.Random) -> Session:
    size = SIZES[kind]
    prompt = _drawn(size.prompt_tokens, limits.scale, chance)
    output = _drawn(size.output_tokens, limits.scale, chance) if size.output_tokens else 0
    return _fitted(Session(number, due_s, kind, prompt, output, size.turns), limits)


def _drawn(median: int, scale: float, chance: random.Random) -> int:
    return max(1, round(median * scale * min(LONGEST, chance.lognormvariate(0, SIGMA))))


def replayed(calls: Sequence[TracedCall], limits: Limits) -> list[Session]:
    """A chat for each call of a trace, with its tokens as far as the model's context takes them."""
    return [
        _fitted(
            Session(
                number,
                call.arrived_at,
                Kind.CHAT,
                max(1, round(call.prompt_tokens * limits.scale)),
                max(1, round(call.output_tokens * limits.scale)),
            ),
            limits,
        )
        for number, call in enumerate(calls)
    ]


def _fitted(session: Session, limits: Limits) -> Session:
    """Cut to the context: the output to half of it at most, the prompt to what is left."""
    context = limits.of(session.kind)
    if not context:
        return session
    # Short texts are all that a model with a small context takes; it has no template to speak of.
    free = max(2, context - min(MARGIN_TOKENS, context // 4))
    output = min(session.output_tokens, free // 2)
    return msgspec.structs.replace(
        session, output_tokens=output, prompt_tokens=min(session.prompt_tokens, free - output)
    )


def cut(planned: Sequence[Session], calls: Sequence[TracedCall], scale: float) -> int:
    """How many sessions of a replay are shorter than their call, because the model's context is."""
    return sum(
        session.prompt_tokens < round(call.prompt_tokens * scale)
        or session.output_tokens < round(call.output_tokens * scale)
        for session, call in zip(planned, calls, strict=True)
    )
