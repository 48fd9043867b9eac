"""Fair queue: which of the calls that wait for one model goes next? Pure; the clock is passed in (TEN-14).

The class decides first. Within one, the tenant goes first that has had the fewest tokens for its weight (virtual token counter:
Sheng et al., Fairness in Serving Large Language Models, OSDI 2024), and of a tenant's calls the one that came first. A class that
has waited past its time gets a share of what is served, whatever comes before it.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import msgspec

from serving.gateway.policies import CLASSES, PriorityClass

T = TypeVar("T")

#: What an output token counts, in prompt tokens: about what it takes of an engine with a full batch (3.6 in the model of the
#: judges, `loadtest/scaling/model.py`), and what price lists ask for it.
OUTPUT_WEIGHT = 4.0
#: Share of the tokens that classes past their time get while others come before them.
LATE_SHARE = 0.25
#: Seconds of all that is served that a tenant may save up while it asks for nothing: then its next calls need not wait for each other.
CREDIT_S = 2.0
#: Calls like the one that comes, that it may save up at least.
CREDIT_CALLS = 8
#: Tenants whose counters one class remembers beside those that wait.
TENANTS_MAX = 10_000
#: Seconds over which the rate of service is averaged.
AVERAGED_S = 10.0
#: Bounds of the seconds after which a refused call is told to come back; the least where nothing was served yet.
RETRY_AFTER_S = (1.0, 600.0)


def cost(prompt_tokens: float, output_tokens: float) -> float:
    """What a call counts, in tokens."""
    return prompt_tokens + OUTPUT_WEIGHT * output_tokens


def urgency(priority: PriorityClass, *, is_owed: bool = False, is_late: bool = False) -> int:
    """A call's number in vLLM's own queue, where lower ones go first: the class's, standard at 0, and the order found here within it."""
    if is_late:
        return -3
    return 2 * (CLASSES.index(priority) - 1) - is_owed


class Waiting(msgspec.Struct, Generic[T], eq=False):
    """One call in the queue."""

    call: T
    priority: PriorityClass
    tenant: str
    weight: float
    cost: float
    #: When it came, on the clock, and its number among all that came.
    since: float
    number: int
    #: Its tenant has had less than its share.
    is_owed: bool = False
    #: It went before those of another class because its own had waited past its time.
    is_late: bool = False
    #: One that came later went before it.
    is_overtaken: bool = False


class Pace:
    """How fast calls are served, in tokens a second: an average that forgets."""

    def __init__(self) -> None:
        self._began_at: float | None = None
        self._tokens = 0.0
        self._at = 0.0

    def add(self, tokens: float, now: float) -> None:
        """So many were let through now."""
        if self._began_at is None:
            self._began_at = self._at = now
        self._tokens = self._tokens * math.exp((self._at - now) / AVERAGED_S) + tokens
        self._at = now

    def tokens_per_s(self, now: float) -> float:
        """0 where nothing is known yet."""
        if self._began_at is None or now <= self._began_at:
            return 0.0
        # Of a short past the average holds less than all.
        held_s = AVERAGED_S * (1 - math.exp((self._began_at - now) / AVERAGED_S))
        return self._tokens * math.exp((self._at - now) / AVERAGED_S) / held_s


class _Lane(Generic[T]):
    """The calls of one class, by tenant."""

    def __init__(self, tenants_max: int) -> None:
        self._tenants_max = tenants_max
        #: All, in the order in which they came.
        self.calls: OrderedDict[Waiting[T], None] = OrderedDict()
        self._of_tenant: dict[str, OrderedDict[Waiting[T], None]] = {}
        #: Tenant → what it has had, over its weight: the virtual token counter.
        self._had: dict[str, float] = {}
        #: Tenant → when it last had a turn, as a number that grows.
        self._turns: dict[str, int] = {}
        #: The counter of the tenant that went last, before it went.
        self._level = 0.0
        self._turn = 0

    @property
    def since(self) -> float:
        """When the first of them came."""
        return next(iter(self.calls)).since

    def push(self, waiting: Waiting[T], credit: float) -> None:
        if waiting.tenant not in self._of_tenant:
            self._come_back(waiting.tenant, credit)
            self._of_tenant[waiting.tenant] = OrderedDict()
        self._of_tenant[waiting.tenant][waiting] = None
        self.calls[waiting] = None

    def remove(self, waiting: Waiting[T]) -> None:
        del self.calls[waiting]
        own = self._of_tenant[waiting.tenant]
        del own[waiting]
        if not own:
            del self._of_tenant[waiting.tenant]

    def counts(self) -> dict[str, int]:
        """How many calls of each tenant wait."""
        return {tenant: len(own) for tenant, own in self._of_tenant.items()}

    def last_of(self, tenant: str) -> Waiting[T] | None:
        own = self._of_tenant.get(tenant)
        return next(reversed(own)) if own else None

    def next(self) -> Waiting[T]:
        """The first call of the tenant that has had least; of equals it goes to the one whose last turn is longest ago."""
        first = least = (math.inf, 0)
        tenant = ""
        for name in self._of_tenant:
            key = self._had[name], self._turns.get(name, 0)
            if key < first:
                first, least, tenant = key, first, name
            else:
                least = min(least, key)
        waiting = next(iter(self._of_tenant[tenant]))
        # Where no other tenant waits, the others' calls are in the engines: the last that went says how far they are.
        others = least[0] if least[0] < math.inf else self._level
        waiting.is_owed = first[0] + waiting.cost / waiting.weight < others
        return waiting

    def is_owed(self, tenant: str, weight: float, tokens: float, credit: float) -> bool:
        self._come_back(tenant, credit)
        return self._had[tenant] + tokens / weight < self._level

    def charge(self, tenant: str, weight: float, tokens: float, credit: float) -> None:
        """A tenant has its turn."""
        if tenant not in self._of_tenant:
            self._come_back(tenant, credit)
        self._turn += 1
        self._turns[tenant] = self._turn
        self._level = max(self._level, self._had[tenant])
        self._had[tenant] += tokens / weight

    def correct(self, tenant: str, weight: float, tokens: float) -> None:
        if tenant in self._had:
            self._had[tenant] += tokens / weight

    def _come_back(self, tenant: str, credit: float) -> None:
        """A tenant that was away has saved up no more than `credit` meanwhile (counter lift)."""
        floor = min((self._had[it] for it in self._of_tenant), default=self._level)
        self._had[tenant] = max(self._had.pop(tenant, 0.0), floor - credit)
        if len(self._had) > self._tenants_max + len(self._of_tenant):
            gone = next(it for it in self._had if it not in self._of_tenant)
            del self._had[gone]
            self._turns.pop(gone, None)


class FairQueue(Generic[T]):
    """The calls that wait for one model. `late_after_s` has the time of each class but the first: past it, what comes before does not take
    everything.
    """

    def __init__(self, late_after_s: Mapping[PriorityClass, float], tenants_max: int = TENANTS_MAX) -> None:
        self._late_after_s = late_after_s
        self._lanes: dict[PriorityClass, _Lane[T]] = {priority: _Lane(tenants_max) for priority in CLASSES}
        self._length = 0
        self._count = 0
        #: The latest of those that have gone.
        self._latest = -1
        #: Tokens that late classes may have now; below 0 they have had their share in advance.
        self._late_credit = 0.0
        self._pace = Pace()

    def __len__(self) -> int:
        return self._length

    def push(
        self, call: T, priority: PriorityClass, tenant: str, weight: float, tokens: float, now: float
    ) -> Waiting[T]:
        """A call comes, which will probably cost so many `tokens` (`cost`)."""
        self._count += 1
        self._length += 1
        waiting = Waiting(call, priority, tenant, weight, tokens, now, self._count)
        self._lanes[priority].push(waiting, self._credit(tokens, now))
        return waiting

    def remove(self, waiting: Waiting[T]) -> None:
        """It waits no longer."""
        self._lanes[waiting.priority].remove(waiting)
        self._length -= 1

    def pop(self, has_room: Callable[[Waiting[T]], bool], now: float) -> Waiting[T] | None:
        """The call that goes now; None where none waits, or the next one has no room: none passes it then, or large ones never went."""
        lane, is_late = self._next_lane(now)
        if lane is None:
            return None
        waiting = lane.next()
        if not has_room(waiting):
            return None
        self.remove(waiting)
        waiting.is_late = is_late
        waiting.is_overtaken = waiting.number < self._latest
        self._latest = max(self._latest, waiting.number)
        lane.charge(waiting.tenant, waiting.weight, waiting.cost, self._credit(waiting.cost, now))
        earned = -waiting.cost if is_late else waiting.cost * LATE_SHARE / (1 - LATE_SHARE)
        self._late_credit = min(0.0, self._late_credit + earned)
        self._pace.add(waiting.cost, now)
        return waiting

    def is_owed(self, priority: PriorityClass, tenant: str, weight: float, tokens: float, now: float) -> bool:
        """Has its tenant had less than its share, when a call comes while none waits?"""
        return self._lanes[priority].is_owed(tenant, weight, tokens, self._credit(tokens, now))

    def passed(self, priority: PriorityClass, tenant: str, weight: float, tokens: float, now: float) -> None:
        """A call went on without a wait."""
        self._lanes[priority].charge(tenant, weight, tokens, self._credit(tokens, now))
        self._pace.add(tokens, now)

    def served(self, priority: PriorityClass, tenant: str, weight: float, tokens: float) -> None:
        """A call that went has cost so many tokens more than was thought, or fewer."""
        self._lanes[priority].correct(tenant, weight, tokens)

    def gives_way(self, tenant: str) -> Waiting[T] | None:
        """Of a full queue the call whose place a new one of `tenant` may have: the last one of the tenant with most calls.

        None where that is this tenant.
        """
        counts = Counter[str]()
        for lane in self._lanes.values():
            counts.update(lane.counts())
        ((most, count),) = counts.most_common(1) or (("", 0),)
        if counts[tenant] + 1 >= count:
            return None
        return next(last for it in reversed(CLASSES) if (last := self._lanes[it].last_of(most)))

    def depths(self) -> dict[PriorityClass, int]:
        """How many wait of each class."""
        return {priority: len(lane.calls) for priority, lane in self._lanes.items()}

    def retry_after_s(self, priority: PriorityClass, now: float) -> float:
        """Seconds until what waits now of this class, and of those before it, is served at the rate seen lately."""
        before = CLASSES[: CLASSES.index(priority) + 1]
        tokens = sum(waiting.cost for it in before for waiting in self._lanes[it].calls)
        least, most = RETRY_AFTER_S
        rate = self._pace.tokens_per_s(now)
        return min(max(tokens / rate, least), most) if rate else least

    def _credit(self, tokens: float, now: float) -> float:
        return max(self._pace.tokens_per_s(now) * CREDIT_S, tokens * CREDIT_CALLS)

    def _next_lane(self, now: float) -> tuple[_Lane[T] | None, bool]:
        """Whose turn it is, and whether that is because it is late."""
        lanes = [
            (now - lane.since - self._late_after_s.get(it, math.inf), lane)
            for it, lane in self._lanes.items()
            if lane.calls
        ]
        if not lanes:
            return None, False
        late_s, latest = max(lanes[1:], key=lambda it: it[0], default=(-1.0, None))
        if latest is not None and late_s >= 0 and self._late_credit >= 0:
            return latest, True
        return lanes[0][1], False
