"""Counter: what a limit counts, what a call takes of it, and the protocol of those who count: in memory, in SQL, in Redis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

#: No bucket refills over a longer time: it is counted in 53 bits everywhere.
PERIOD_MAX_US = 2**26
#: Seconds after which what a silent gateway has reserved is given back; gateways renew what they hold three times as often.
LEASE_S = 60.0


class Kind(StrEnum):
    """How a counter forgets."""

    #: A bucket that refills evenly: `limit` in `period_us` (GCRA, ITU-T I.371). It starts full.
    RATE = "rate"
    #: Counts up until it ends: a day, a month. One that is not known is read from the ledger first.
    WINDOW = "window"
    #: What is open at a time: forgets when the call is over.
    OPEN = "open"


class Draw(msgspec.Struct, frozen=True):
    """What one call takes of one counter."""

    #: `<tenant id>/…`: all counters of a decision belong to one tenant, and differ.
    name: str
    kind: Kind
    limit: int
    amount: int
    #: RATE: microseconds in which `limit` refills, up to PERIOD_MAX_US.
    period_us: int = 0
    #: WINDOW: when it ends, in microseconds since the epoch.
    ends_at_us: int = 0


class Level(msgspec.Struct, frozen=True):
    """What is left of one counter after a decision."""

    #: At least 0.
    remaining: int
    #: Microseconds until it has all of its limit again.
    resets_in_us: int


class Verdict(msgspec.Struct, frozen=True):
    """What was decided of a call's draws, all together."""

    #: One for each draw, in their order.
    levels: tuple[Level, ...]
    #: Of the draws that were refused the one that is for longest, by its place; None: all were taken.
    refused: int | None = None
    #: Microseconds until that draw would be taken if no other call came; None: it never is, or it is not known (OPEN).
    retry_in_us: int | None = None


class Counters(Protocol):
    """Those who count. `lease` names one call's reservation; among all gateways it is used once."""

    async def reserve(self, lease: str, draws: Sequence[Draw]) -> Verdict:
        """Take all draws or none."""

    def doubt(self, windows: Iterable[str]) -> None:
        """These may have missed something: the next decision on each goes by what the ledger says, where that is more."""

    def top_up(self, lease: str, draws: Sequence[Draw]) -> None:
        """Take more of counters that the lease has drawn from, whatever the limits: what has begun is not cut off. Returns at once;
        done in the background."""

    def settle(self, lease: str, reserved: Sequence[Draw], amounts: Sequence[int]) -> None:
        """The call is over: each counter has `amounts` of it instead of all that was reserved and topped up. Returns at once."""
