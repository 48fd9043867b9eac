"""Tally: where several gateways count together, in Redis or in a database, and what they tell it.

A tally decides at once for all gateways, and may be away. What a gateway has it change may arrive twice, when an answer was lost: a
lease's holdings are said in whole, and its end counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from serving.gateway.admission.counters.counter import Draw, Verdict


class TallyUnavailable(Exception):
    """It did not answer, or not in time. The reason is for the log, and names no address."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unseeded(msgspec.Struct, frozen=True):
    """Nothing was decided: these windows must be read from the ledger first."""

    windows: tuple[Draw, ...]


class Part(msgspec.Struct, frozen=True):
    """What a change does to one counter."""

    #: Its amount plays no part.
    draw: Draw
    #: RATE: what is taken more, or given back if negative. WINDOW: what a call has taken in the end.
    add: int = 0
    #: WINDOW: what the lease reserves from now on. OPEN: 1 while its call is open. 0: nothing any more.
    hold: int = 0


class Change(msgspec.Struct, frozen=True):
    """What becomes of one lease. All its parts are of one tenant."""

    lease: str
    parts: tuple[Part, ...]
    #: Nothing follows under this lease: what is repeated after it is ignored.
    is_final: bool = False
    #: When a call was over, in microseconds since the epoch: a window that was read from the ledger later has counted it already.
    over_at_us: int = 0
    #: When its rates were spent, in microseconds since the epoch, so that they have refilled since; 0: now.
    spent_at_us: int = 0


class Tally(Protocol):
    """Those who count for several gateways. All methods raise TallyUnavailable."""

    async def reserve(self, lease: str, draws: Sequence[Draw]) -> Verdict | Unseeded:
        """Take all draws or none, whatever other gateways do meanwhile."""

    async def seed(self, window: Draw, value: int, *, is_late: bool) -> None:
        """What the ledger says of a window: it counts from there, unless it counts already. Late, it has counted that at least."""

    async def apply(self, changes: Sequence[Change]) -> None:
        """Make changes, those of one lease in their order. Each renews the lease that it leaves something."""

    async def probe(self) -> None:
        """Can it be written?"""

    async def tidy(self) -> None:
        """Remove what nothing else removes; called every now and then."""

    async def close(self) -> None:
        """Nothing follows."""
