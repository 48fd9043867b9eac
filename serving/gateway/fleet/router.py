"""Router: which replica takes this call? A pure ranking: where its first token will come soonest, as far as is known."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

#: What any call weighs, however short: a share of an engine's steps.
CALL_TOKENS = 64


class Need(msgspec.Struct, frozen=True):
    """What one call asks of a replica, estimated."""

    prompt_tokens: int = 0
    output_tokens: float = 0.0
    #: Its conversation in blocks: a hash of each and of all before it, apart for every tenant.
    prefix: tuple[int, ...] = ()
    #: Prompt tokens in one of them.
    tokens_per_block: float = 0.0

    @property
    def decode_tokens(self) -> int:
        """What it commits a replica to once its prompt is computed."""
        return CALL_TOKENS + round(self.output_tokens)


NO_NEED = Need()


class Candidate(msgspec.Struct, frozen=True):
    """A ready replica as the ranking of one call sees it. It has the call's adapter, or it would be no candidate."""

    replica_id: str
    #: Base URL of its engine.
    url: str
    #: Tokens of its context; 0 where it is not known.
    context_tokens: int = 0
    #: Tokens that calls on it, of all gateways, have yet to compute.
    committed_tokens: int = 0
    #: Tokens of this call's prompt that its prefix cache holds.
    cached_tokens: int = 0
    #: When this gateway last chose it, as a number that grows: equals take turns.
    turn: int = 0


def rank(candidates: Sequence[Candidate], level: float = 0.0, draw: float = 0.0) -> list[Candidate]:
    """The fewest tokens before the call's first one come first.

    A prefix counts for what it saves: the longest one wins until its replica's queue costs more than that. Then the call goes to
    another, which has the prefix from then on.

    Up to `level` other gateways have probably filled up the least committed, unseen: they choose as this one does. Of those the
    call takes one by `draw`, from 0 to 1, each as likely as it had room. Else all gateways would send to the same replica until it
    reports (GW-60).
    """
    keyed = sorted(
        (max(it.committed_tokens, level) - it.cached_tokens, it.turn, it.replica_id, it) for it in candidates
    )
    ranked = [it for _, _, _, it in keyed]
    rooms = [max(0.0, level - it.committed_tokens) for ahead, _, _, it in keyed if ahead == keyed[0][0]]
    point = draw * sum(rooms)
    for place, room in enumerate(rooms):
        point -= room
        if point < 0:
            return [ranked.pop(place), *ranked]
    return ranked


def water_level(committed: Sequence[int], tokens: float) -> float:
    """How far so many tokens fill up the lowest of these, which are in order. (Dahlin, Interpreting Stale Load Information, 1999.)"""
    filled, level = 0, 0.0
    for count, low in enumerate(committed, start=1):
        if count > 1 and level <= low:
            break
        filled += low
        level = (filled + tokens) / count
    return level
