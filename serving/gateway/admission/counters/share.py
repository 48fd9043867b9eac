"""Share: how one gateway counts while the counters that all share are away, so that no call is refused for that.

A gateway goes on with its part of each limit, limit ÷ gateways, and at least 1: of a rate, its own bucket; of a window, its part of what
was left when it last knew; of open calls, its part beside those that it has. A draw that is larger than the part, and no larger than the
limit, is taken once nothing of the part is in use.

What is spent above a limit L in an outage, by N gateways whose largest draw is A, is therefore at most

    N × max(L ÷ N rounded down, 1, A)

of each counter: nothing more than the limit once again where draws are small. It is paid back: what was spent is accounted for, as of
when it was spent, before the shared counters decide again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from serving.gateway.admission.counters.counter import Draw, Kind, Verdict
from serving.gateway.admission.counters.memory import COUNTERS_MAX, MemoryCounters
from serving.gateway.admission.counters.seeding import Seeding
from serving.gateway.admission.counters.tally import Change, Part

#: Parts of one change.
PARTS_MAX = 50


class Known(msgspec.Struct, frozen=True):
    """What a gateway last knew of a window."""

    used: int
    ends_at_us: int


class Holding(msgspec.Struct):
    """What an open call has taken of each counter, by its name."""

    draws: dict[str, Draw]
    taken: dict[str, int]
    #: Of it, what the shared counters are not told as this call's: it was topped up in an outage.
    beyond: dict[str, int] = {}

    @classmethod
    def of(cls, draws: Sequence[Draw]) -> Holding:
        """What a call has taken with its reservation."""
        return cls({it.name: it for it in draws}, {it.name: it.amount for it in draws})

    def top_up(self, draw: Draw, *, is_beyond: bool = False) -> None:
        """Nothing of a counter that it has not drawn from."""
        if draw.name in self.taken and draw.kind is not Kind.OPEN:
            self.taken[draw.name] += draw.amount
            if is_beyond:
                self.beyond[draw.name] = self.beyond.get(draw.name, 0) + draw.amount

    def known_of(self, draw: Draw) -> int:
        """What the shared counters know that it has taken."""
        return self.taken.get(draw.name, 0) - self.beyond.get(draw.name, 0)


def part_of(limit: int, gateways: int) -> int:
    """One gateway's part of a limit."""
    return max(1, limit // gateways) if limit > 0 else 0


class Share:
    """One outage, as one gateway goes through it."""

    def __init__(
        self, gateways: int, clock_us: Callable[[], int], known: Mapping[str, Known], seeding: Seeding
    ) -> None:
        self.began_at_us = clock_us()
        self._gateways = max(1, gateways)
        self._clock_us = clock_us
        self._known = known
        self._seeding = seeding
        self._local = MemoryCounters(clock_us)
        #: Windows as they were when this outage first met them.
        self._before: dict[str, Known] = {}
        self._held: dict[str, Holding] = {}
        #: Leases of this outage of which the shared counters were told.
        self._told: set[str] = set()
        #: What was spent since it was last accounted for, and since when.
        self._spent: dict[str, tuple[Draw, int]] = {}
        self._spent_since_us = self.began_at_us

    @property
    def lasts_us(self) -> int:
        return self._clock_us() - self.began_at_us

    def adopt(self, lease: str, holding: Holding) -> None:
        """A call that the shared counters know is open here."""
        self._local.adopt(lease, list(holding.draws.values()))

    async def reserve(self, lease: str, draws: Sequence[Draw]) -> Verdict:
        """Take all draws of this gateway's part, or none."""
        await self._remember(draws)
        local = [self._local_draw(draw) for draw in draws]
        verdict = await self._local.reserve(lease, local)
        if verdict.refused is not None:
            return self._with_retry(verdict, draws[verdict.refused])
        # What is above this gateway's part.
        more = [(it, draw.amount - it.amount) for it, draw in zip(local, draws, strict=True)]
        self._local.top_up(lease, [msgspec.structs.replace(it, amount=amount) for it, amount in more if amount])
        self._held[lease] = Holding.of(draws)
        for draw in draws:
            self._spend(draw, draw.amount, Kind.RATE)
        return verdict

    def top_up(self, lease: str, draws: Sequence[Draw]) -> None:
        """Take more, whatever the part."""
        self._local.top_up(lease, [self._local_draw(draw, whole=True) for draw in draws])
        for draw in draws:
            self._spend(draw, draw.amount, Kind.RATE)
            if (holding := self._held.get(lease)) is not None:
                holding.top_up(draw)

    def settle(self, lease: str, reserved: Sequence[Draw], amounts: Sequence[int]) -> Change | None:
        """A call that was reserved in this outage is over. What the shared counters are to learn at once."""
        if (holding := self._held.pop(lease, None)) is None:
            return None
        self._local.settle(lease, [self._local_draw(draw, whole=True) for draw in reserved], amounts)
        for draw, amount in zip(reserved, amounts, strict=True):
            self._spend(draw, amount - holding.taken.get(draw.name, 0), Kind.RATE)
            self._spend(draw, amount, Kind.WINDOW)
        if lease not in self._told:
            return None
        return Change(lease, tuple(Part(draw) for draw in reserved), is_final=True)

    def settle_adopted(self, lease: str, holding: Holding, reserved: Sequence[Draw], amounts: Sequence[int]) -> None:
        """One that the shared counters know is over: what it took beyond what they know was taken here."""
        beyond = [max(0, amount - holding.known_of(draw)) for draw, amount in zip(reserved, amounts, strict=True)]
        self._local.settle(lease, [self._local_draw(draw, whole=True) for draw in reserved], beyond)
        for draw, amount in zip(reserved, beyond, strict=True):
            self._spend(draw, amount - holding.beyond.get(draw.name, 0), Kind.RATE)
            self._spend(draw, amount, Kind.WINDOW)

    def account(self) -> Iterator[Change]:
        """What the shared counters are to learn: what was spent since this was last asked, and which calls are open."""
        since_us, self._spent_since_us = self._spent_since_us, self._clock_us()
        spent, self._spent = self._spent, {}
        of_tenants: dict[str, list[Part]] = {}
        for name, (draw, amount) in spent.items():
            of_tenants.setdefault(name.partition("/")[0], []).append(Part(draw, add=amount))
        for parts in of_tenants.values():
            for at in range(0, len(parts), PARTS_MAX):
                some = tuple(parts[at : at + PARTS_MAX])
                yield Change(secrets.token_hex(16), some, is_final=True, over_at_us=since_us + 1, spent_at_us=since_us)
        for lease, holding in self._held.items():
            self._told.add(lease)
            yield from renewal(lease, holding)

    def open_calls(self) -> dict[str, Holding]:
        """Calls of this outage that go on after it."""
        return self._held

    def windows(self) -> dict[str, Known]:
        """What this gateway knows of windows, with what it has counted itself."""
        return {name: Known(it.used + self._local.taken(name), it.ends_at_us) for name, it in self._before.items()}

    def _spend(self, draw: Draw, amount: int, kind: Kind) -> None:
        if draw.kind is not kind or amount == 0:
            return
        before, spent = self._spent.get(draw.name, (draw, 0))
        if before.ends_at_us > draw.ends_at_us:
            return
        # A window that is over is the shared counters' no more either.
        kept = spent if before.ends_at_us == draw.ends_at_us else 0
        self._spent[draw.name] = (draw, kept + amount)
        if len(self._spent) > COUNTERS_MAX:
            del self._spent[next(iter(self._spent))]

    async def _remember(self, draws: Sequence[Draw]) -> None:
        """What windows had counted before this outage: as this gateway last knew, or else by the ledger."""
        windows = [draw for draw in draws if draw.kind is Kind.WINDOW and self._is_new(draw)]
        unknown = []
        for draw in windows:
            known = self._known.get(draw.name)
            if known is not None and known.ends_at_us == draw.ends_at_us:
                self._before[draw.name] = known
            else:
                unknown.append(draw)
        if unknown:
            values = await self._seeding.values([draw.name for draw in unknown]) or {}
            for draw in unknown:
                if self._is_new(draw):
                    self._before[draw.name] = Known(values.get(draw.name, 0), draw.ends_at_us)

    def _is_new(self, draw: Draw) -> bool:
        before = self._before.get(draw.name)
        return before is None or before.ends_at_us < draw.ends_at_us

    def _local_draw(self, draw: Draw, *, whole: bool = False) -> Draw:
        """A draw on this gateway's part."""
        limit = draw.limit
        if draw.kind is Kind.WINDOW and (before := self._before.get(draw.name)) is not None:
            limit = max(0, limit - before.used)
        part = part_of(limit, self._gateways)
        is_whole = whole or draw.amount > draw.limit
        return msgspec.structs.replace(draw, limit=part, amount=draw.amount if is_whole else min(draw.amount, part))

    def _with_retry(self, verdict: Verdict, refused: Draw) -> Verdict:
        """A window of which nothing is left has something again when the next begins."""
        if refused.kind is not Kind.WINDOW or not 0 < refused.amount <= refused.limit:
            return verdict
        return msgspec.structs.replace(verdict, retry_in_us=max(0, refused.ends_at_us - self._clock_us()))


def renewal(lease: str, holding: Holding) -> Iterator[Change]:
    """That a call is open, and what it holds."""
    parts = [
        Part(draw, hold=1 if draw.kind is Kind.OPEN else holding.taken[draw.name])
        for draw in holding.draws.values()
        if draw.kind is not Kind.RATE
    ]
    if parts:
        yield Change(lease, tuple(parts))
