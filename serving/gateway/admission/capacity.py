"""Capacity: has a model's fleet room for one more call of this gateway? Pure arithmetic on its own calls and on replicas' reports.

Room ends where the KV cache is committed, or where more of this gateway's calls wait inside the engines than those will take in at
once (TEN-15).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Protocol

import msgspec

from serving.wire import EngineLoad

#: Prompt tokens that an engine computes in one step: vLLM's --max-num-batched-tokens in most of the catalogue's profiles.
STEP_TOKENS = 4096
#: Calls that each engine has at least: one that it computes and the next one.
NEXT_CALLS = 2
#: What a call counts at least among those that wait for an engine's next step.
CALL_TOKENS = 512
#: Steps that may wait in each engine at most, where reports never show that any does.
WINDOW_MAX_TOKENS = 64 * STEP_TOKENS
#: Waiting calls that an engine should have, as a share of those that run: enough that a batch is never short of them.
WAITING_SHARE = 1 / 16
#: Steps of prompts that may wait where engines do not say when they begin: what they compute until the next reports.
BLIND_STEPS = 8
#: How much more may wait in the engines, where the call's tenant has had less than its share: engines take it before the others.
OWED_WINDOWS = 2
#: Other gateways' share of the requests from which on a fleet is taken to be theirs too; less is what reports lag behind.
SHARED = 0.1
#: What is left to tenants that have had less than their share: so many calls for each engine, and at most so much of the KV caches.
KEPT_CALLS = 8
KEPT_SHARE = 1 / 16
#: Weight of the newest report in how much KV a call takes beside what is expected, and the bounds of that.
LEARNING_RATE = 0.3
SCALE_RANGE = (0.25, 4.0)


class Reported(Protocol):
    """A ready replica as it last reported."""

    load: EngineLoad
    #: On the clock.
    reported_at: float


class Hold(msgspec.Struct, eq=False):
    """What one call takes of the fleet, from its admission to its end."""

    prompt_tokens: int
    output_tokens: float
    #: Its engine says when it begins.
    is_streamed: bool
    #: When it went to an engine, on the clock.
    sent_at: float = 0.0
    #: Its prompt is yet to be computed, as far as is known.
    is_fresh: bool = False

    @property
    def kv_tokens(self) -> float:
        """What it takes of a KV cache, on average over its time: the output grows from nothing."""
        return self.prompt_tokens + self.output_tokens / 2

    @property
    def step_tokens(self) -> int:
        """What it takes of an engine's next steps."""
        return max(self.prompt_tokens, CALL_TOKENS)


class Capacity:
    """Of one model, as one gateway sees it."""

    def __init__(self) -> None:
        self._replicas = 0
        #: What their KV caches have room for; 0 where one of them does not say.
        self._kv_cache_tokens = 0
        #: This gateway's calls: how many, and their KV.
        self.calls = 0
        self.kv_tokens = 0.0
        #: Those whose prompts are yet to be computed: how many, their tokens, and of them those that say nothing when they begin.
        self.fresh_calls = 0
        self.fresh_tokens = 0
        self._silent: OrderedDict[Hold, None] = OrderedDict()
        #: Requests of other gateways, and what a call takes.
        self._others = 0
        self._others_share = 0.0
        self._mean_kv_tokens = 0.0
        #: KV that is left to tenants that have had less than their share: so they need not wait for a call's end.
        self._kept_tokens = 0.0
        #: What the caches hold over what was expected: shared prefixes make it less.
        self._scale = 1.0
        #: Prompt tokens that may wait in each engine, and whether a call was held back for them since the last report.
        self._window_tokens = STEP_TOKENS
        self._was_full = False
        #: Gateways that share the fleet.
        self._gateways = 1

    @property
    def silent_calls(self) -> int:
        """Calls of which only reports can say that they have begun."""
        return len(self._silent)

    def has_room(self, hold: Hold, *, is_owed: bool = False) -> bool:
        """Should it go to an engine now? `is_owed` is a call of a tenant that has had less than its share: the last room is for such."""
        # No gateway is kept out by others, whatever reports say: a call on each engine it may always have.
        if self.calls < self._replicas:
            return True
        windows = self._replicas * (OWED_WINDOWS if is_owed else 1)
        if self.fresh_calls >= NEXT_CALLS * windows and self.fresh_tokens >= self._window_tokens * windows:
            self._was_full = True
            return False
        # Beside other gateways what is owed waits in an engine, before all others there: only it knows when a call of theirs ends.
        if not self._kv_cache_tokens or (is_owed and self._others_share > SHARED):
            return True
        own = (self.kv_tokens + hold.kv_tokens) * self._scale
        others = self._others * self._mean_kv_tokens * self._scale
        room = self._kv_cache_tokens + (self._kept_tokens if is_owed else -self._kept_tokens)
        # Its part it may have whatever others do, and of theirs what they leave.
        return own + others <= room or (self._gateways > 1 and own <= room / self._gateways)

    def take(self, hold: Hold, now: float) -> None:
        """It goes."""
        hold.sent_at, hold.is_fresh = now, True
        self.calls += 1
        self.kv_tokens += hold.kv_tokens
        self.fresh_calls += 1
        self.fresh_tokens += hold.step_tokens
        if not hold.is_streamed:
            self._silent[hold] = None

    def begun(self, hold: Hold) -> None:
        """Its first token has come."""
        if not hold.is_fresh:
            return
        hold.is_fresh = False
        self.fresh_calls -= 1
        self.fresh_tokens -= hold.step_tokens
        self._silent.pop(hold, None)

    def give_back(self, hold: Hold) -> None:
        """It is over."""
        self.begun(hold)
        self.calls -= 1
        self.kv_tokens -= hold.kv_tokens

    def report(self, replicas: Collection[Reported], gateways: int = 0) -> None:
        """The ready replicas, as they last reported, and how many gateways share them; 0: it is not known."""
        loads = [it.load for it in replicas]
        self._replicas = len(loads)
        is_known = all(load.kv_cache_tokens for load in loads)
        self._kv_cache_tokens = sum(load.kv_cache_tokens for load in loads) if is_known else 0
        waiting = sum(load.waiting_requests for load in loads)
        running = sum(load.running_requests for load in loads)
        self._others = max(0, running + waiting - self.calls)
        if self._others or self.calls:
            self._others_share += LEARNING_RATE * (self._others / (self._others + self.calls) - self._others_share)
        self._gateways = gateways or (2 if self._others_share > SHARED else 1)
        self._learn(sum(load.kv_cache_used_ratio * load.kv_cache_tokens for load in loads), running)
        self._kept_tokens = min(self._kv_cache_tokens * KEPT_SHARE, KEPT_CALLS * self._mean_kv_tokens * self._replicas)
        self._look_at_silent(waiting, min((it.reported_at for it in replicas), default=0.0))
        self._adapt(waiting, running, sum(load.queued_prefill_tokens for load in loads))

    def _learn(self, used_tokens: float, running: int) -> None:
        if self.calls:
            self._mean_kv_tokens = self.kv_tokens / self.calls
        elif running:
            self._mean_kv_tokens = used_tokens / running
        if running and used_tokens and self._mean_kv_tokens:
            least, most = SCALE_RANGE
            seen = min(max(used_tokens / running / self._mean_kv_tokens, least), most)
            self._scale += LEARNING_RATE * (seen - self._scale)

    def _look_at_silent(self, waiting: int, reported_at: float) -> None:
        """Engines begin in order: of whole answers that were asked for before the reports, at most the last `waiting` have not begun."""
        asked = [hold for hold in self._silent if hold.sent_at < reported_at]
        for hold in asked[: max(0, len(asked) - waiting)]:
            self.begun(hold)

    def _adapt(self, waiting: int, running: int, queued_tokens: int) -> None:
        """Engines in which nothing waits, though calls wait here, get twice as much; those in which too much waits half."""
        steps = self._replicas * (BLIND_STEPS if self._silent else 1)
        enough = max(steps, running * WAITING_SHARE)
        if waiting > enough or (waiting and queued_tokens > 2 * STEP_TOKENS * steps):
            self._window_tokens = max(CALL_TOKENS, self._window_tokens // 2)
        elif not waiting and self._was_full:
            self._window_tokens = min(WINDOW_MAX_TOKENS, self._window_tokens * 2)
        self._was_full = False
