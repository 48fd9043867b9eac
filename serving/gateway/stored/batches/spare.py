"""Spare: when lines of batches begin, so that other calls' first tokens come as soon as without them (BAT-3).

What delays another call's first token is a prompt that its engine computes just then: engines put it before lines that wait, and not
before one that has begun. So while other calls are about, few prompt tokens of lines begin in a second; once none has been seen for
a while, lines may have what there is. `allowance` is pure; the shell around it wakes lines, tenant by tenant in turn.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import msgspec

from serving.wire import EngineLoad

#: Lines at each replica while other calls are about, and when there are none.
CAREFUL_LINES = 4
QUIET_LINES = 64
#: Seconds without another call after which there are none.
QUIET_S = 60.0
#: Share of the KV caches in use from which on lines become fewer, and from which on none begins: other calls come first to the room.
KV_FREE, KV_FULL = 0.4, 0.7


class Seen(msgspec.Struct, frozen=True):
    """What a gateway knows of one model's fleet."""

    #: Ready replicas, as they last reported.
    loads: Sequence[EngineLoad]
    #: Calls of other classes that wait in this gateway.
    waiting: int = 0
    #: Seconds since a call was seen that is no line of this gateway's.
    quiet_s: float = 0.0


class Allowance(msgspec.Struct, frozen=True):
    """How many lines may be at engines, and how many of their prompt tokens may begin in a second."""

    lines: int
    prompt_tokens_per_s: float


def allowance(seen: Seen, careful_tokens_per_s: float) -> Allowance:
    """`careful_tokens_per_s` is for each replica at which nothing waits, while other calls are about."""
    replicas = len(seen.loads)
    if not replicas:
        # It may sleep: one line wakes it.
        return Allowance(1, math.inf)
    if seen.waiting:
        return Allowance(0, 0.0)
    if seen.quiet_s >= QUIET_S:
        return Allowance(QUIET_LINES * replicas, math.inf)
    calm = sum(not load.waiting_requests for load in seen.loads)
    if not calm:
        return Allowance(0, 0.0)
    used = sum(load.kv_cache_used_ratio for load in seen.loads) / replicas
    share = min(max((KV_FULL - used) / (KV_FULL - KV_FREE), 0.0), 1.0)
    return Allowance(math.ceil(CAREFUL_LINES * replicas * share), careful_tokens_per_s * calm)


def others(loads: Sequence[EngineLoad], lines: int) -> int:
    """Calls at engines that are no lines of this gateway's."""
    return max(0, sum(load.running_requests + load.waiting_requests for load in loads) - lines)


class Pace:
    """Of one model: what has begun, and when the next line may. Without a clock of its own."""

    def __init__(self, now: float) -> None:
        self.lines = 0
        self.next_at = now
        self.others_at = now

    def look(self, loads: Sequence[EngineLoad], waiting: int, now: float) -> Seen:
        """Take in what replicas say."""
        if waiting or others(loads, self.lines):
            self.others_at = now
        return Seen(loads, waiting, now - self.others_at)

    def may_begin(self, allowed: Allowance, now: float) -> bool:
        """Is there room for one more, now? Where nothing paces lines, what was begun before does not either."""
        is_due = now >= self.next_at or allowed.prompt_tokens_per_s == math.inf
        return self.lines < allowed.lines and is_due

    def begin(self, prompt_tokens: int, allowed: Allowance, now: float) -> None:
        """One has begun."""
        self.lines += 1
        self.next_at = now + prompt_tokens / allowed.prompt_tokens_per_s


class _Line(msgspec.Struct, eq=False):
    """One that waits."""

    woken: asyncio.Future[None]
    prompt_tokens: int


class _Model:
    """One model's pace, and what waits for it."""

    def __init__(self, now: float) -> None:
        self.pace = Pace(now)
        #: Tenant → lines that wait, the tenant whose turn it is first.
        self.waiting: OrderedDict[str, deque[_Line]] = OrderedDict()
        self.timer: asyncio.TimerHandle | None = None


class Spare:
    """Places of lines at one gateway's engines. `look` says what is known of a model: loads of its replicas, other calls that wait."""

    def __init__(
        self,
        look: Callable[[str], tuple[Sequence[EngineLoad], int]],
        careful_tokens_per_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._look = look
        self._careful_tokens_per_s = careful_tokens_per_s
        self._clock = clock
        self._models: dict[str, _Model] = {}

    async def place(self, name: str, tenant_id: str, prompt_tokens: int) -> Place:
        """A place, when it is this tenant's turn."""
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _Model(self._clock())
        line = _Line(asyncio.get_running_loop().create_future(), prompt_tokens)
        model.waiting.setdefault(tenant_id, deque()).append(line)
        self.wake(name)
        try:
            await line.woken
        except asyncio.CancelledError:
            if line.woken.done() and not line.woken.cancelled():
                self.leave(name)
            raise
        return Place(self, name)

    def has_room(self, name: str) -> bool:
        """Could one more line begin?"""
        model = self._models.get(name)
        if model is None:
            return True
        loads, waiting = self._look(name)
        seen = model.pace.look(loads, waiting, self._clock())
        return model.pace.lines < allowance(seen, self._careful_tokens_per_s).lines

    def wake_all(self) -> None:
        """Replicas have reported."""
        for name in list(self._models):
            self.wake(name)

    def wake(self, name: str) -> None:
        """Give places to those whose turn it is."""
        model = self._models.get(name)
        if model is None:
            return
        loads, waiting = self._look(name)
        pace, now = model.pace, self._clock()
        allowed = allowance(pace.look(loads, waiting, now), self._careful_tokens_per_s)
        while model.waiting and pace.may_begin(allowed, now):
            self._next(model, allowed, now)
        if model.timer is not None:
            model.timer.cancel()
            model.timer = None
        if model.waiting and pace.lines < allowed.lines:
            model.timer = asyncio.get_running_loop().call_later(max(pace.next_at - now, 0.001), self.wake, name)

    def leave(self, name: str) -> None:
        """A line has left its engine."""
        self._models[name].pace.lines -= 1
        self.wake(name)

    def _next(self, model: _Model, allowed: Allowance, now: float) -> None:
        tenant_id, own = model.waiting.popitem(last=False)
        line = own.popleft()
        if own:
            model.waiting[tenant_id] = own
        if not line.woken.done():
            model.pace.begin(line.prompt_tokens, allowed, now)
            line.woken.set_result(None)


class Place:
    """One line's, until the end of its `with`."""

    def __init__(self, spare: Spare, name: str) -> None:
        self._spare = spare
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._spare.leave(self._name)
