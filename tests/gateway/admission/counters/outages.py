"""A tally that can be taken away and brought back, for all gateways at once."""

from __future__ import annotations

from collections.abc import Sequence

from serving.gateway.admission.counters.counter import Draw, Verdict
from serving.gateway.admission.counters.tally import Change, Tally, TallyUnavailable, Unseeded


class Outage:
    """Whether those who count together can be reached."""

    def __init__(self) -> None:
        self.is_on = False
        #: It answers, and takes no changes.
        self.is_full = False
        #: Changes that it was given and took.
        self.changes = 0


class Cut:
    """A gateway's way to a tally."""

    def __init__(self, tally: Tally, outage: Outage) -> None:
        self._tally = tally
        self._outage = outage

    def _require(self) -> None:
        if self._outage.is_on:
            raise TallyUnavailable("taken away")

    async def reserve(self, lease: str, draws: Sequence[Draw]) -> Verdict | Unseeded:
        self._require()
        return await self._tally.reserve(lease, draws)

    async def seed(self, window: Draw, value: int, *, is_late: bool) -> None:
        self._require()
        await self._tally.seed(window, value, is_late=is_late)

    async def apply(self, changes: Sequence[Change]) -> None:
        self._require()
        if self._outage.is_full:
            raise TallyUnavailable("full")
        self._outage.changes += len(changes)
        await self._tally.apply(changes)

    async def probe(self) -> None:
        self._require()
        await self._tally.probe()

    async def tidy(self) -> None:
        self._require()
        await self._tally.tidy()

    async def close(self) -> None:
        await self._tally.close()
