"""Standing: what one replica is committed to, in tokens that are yet to be computed, kept as calls and reports change it."""

from __future__ import annotations

from hashlib import blake2b
from struct import unpack
from typing import Self

from serving.gateway.fleet.router import Need
from serving.wire import EngineLoad


class Standing:
    """One replica's, of this gateway's calls and of others'."""

    __slots__ = (
        "_others",
        "_own_tokens",
        "committed_tokens",
        "context_tokens",
        "load",
        "own_begun",
        "own_requests",
        "points",
        "replica_id",
        "reported_at",
        "turn",
        "url",
    )

    def __init__(self, replica_id: str) -> None:
        self.replica_id = replica_id
        #: Where it stands on the ring of homes (`choice`): the same in every gateway.
        self.points = unpack("8Q", blake2b(replica_id.encode()).digest())
        self.url = ""
        self.context_tokens = 0
        #: As last reported, and when, on the clock.
        self.load = EngineLoad()
        self.reported_at = 0.0
        #: When it was last chosen.
        self.turn = 0
        self.committed_tokens = 0
        #: This gateway's calls on it, and those of them that have had their first token.
        self.own_requests = self.own_begun = 0
        self._own_tokens = 0
        self._others = 0

    def add(self, tokens: int) -> None:
        """Of our calls on it so many tokens more are to be computed, or fewer."""
        self._own_tokens += tokens
        self.committed_tokens += tokens

    def others(self, load: EngineLoad, prefill_tokens: float, decode_tokens: float) -> tuple[int, int]:
        """Take what it reports; returns how many calls of other gateways wait and run. They are taken to be like ours, of which so
        many tokens are typical; of the running ones' half is done on average.
        """
        waiting = max(0, load.waiting_requests - (self.own_requests - self.own_begun))
        running = max(0, load.running_requests + load.waiting_requests - self.own_requests - waiting)
        self._others = round(waiting * (prefill_tokens + decode_tokens) + running * decode_tokens / 2)
        self.committed_tokens = self._own_tokens + self._others
        return waiting, running


class Commitment:
    """One call's share of that."""

    __slots__ = ("_decode_tokens", "_has_begun", "_prefill_tokens", "_standing")

    def __init__(self, standing: Standing, need: Need, cached_tokens: int) -> None:
        self._standing = standing
        self._prefill_tokens = need.prompt_tokens - cached_tokens
        self._decode_tokens = need.decode_tokens
        self._has_begun = False
        standing.own_requests += 1
        standing.add(self._prefill_tokens + self._decode_tokens)

    def begun(self) -> None:
        """Its first token has come: what is left is its output."""
        if self._has_begun:
            return
        self._has_begun = True
        self._standing.own_begun += 1
        self._standing.add(-self._prefill_tokens)
        self._prefill_tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The call has left its replica."""
        self._standing.own_requests -= 1
        self._standing.own_begun -= self._has_begun
        self._standing.add(-self._prefill_tokens - self._decode_tokens)
