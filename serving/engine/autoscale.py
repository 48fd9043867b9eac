"""Autoscale: how many replicas should this model have now? Computed in the directory, read by Serve's autoscaling hook.

A pure policy over plain data, the clock given: production, tests and the virtual-time judge (loadtest/scaling) run this
code. The need is measured in replicas, by what limits LLM serving, and the tightest limit counts:

* arriving work: prompt tokens a second against the prefill rate, output tokens a second against the decode rate;
* queued prefill, in seconds of one replica's work, cleared within one start-up;
* running requests against the profile's knee, and committed KV against its share.

Arriving work is averaged three times. Over two minutes it is what has to be served. Over seconds, with less headroom, it
shows a surge early, and noise costs little. Over half an hour it is what a lull returns to: a fleet that follows every lull
down is too small when it ends. Scaling up is immediate; scaling down goes to the highest need of the last half of a
start-up time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from serving.catalog import Knee
from serving.wire import ReplicaState

#: States of a replica that will be capacity soon.
COMING = frozenset({ReplicaState.STARTING, ReplicaState.LOADING, ReplicaState.WARMING})
#: Seconds after which a report is stale: ten missed heartbeats, half of the directory's expiry.
STALE_S = 5.0
#: Peaks kept in a Memory, each of `hold_s` / PEAKS seconds: they expire in steps of under a tenth of the hold.
PEAKS = 12


class ReplicaSignal(msgspec.Struct, frozen=True):
    """One replica's last report."""

    replica_id: str
    state: ReplicaState
    #: Seconds since its last report.
    age_s: float = 0.0
    running_requests: int = 0
    waiting_requests: int = 0
    #: Prompt tokens that it has accepted and not computed yet.
    queued_prefill_tokens: int = 0
    #: Share of KV-cache blocks in use, 0 to 1.
    kv_cache_used_ratio: float = 0.0


class Demand(msgspec.Struct, frozen=True):
    """The demand for one model, all gateways together."""

    #: Calls held in waiting rooms, because no replica can take them.
    waiting_requests: int = 0
    oldest_wait_s: float = 0.0
    waiting_prompt_tokens: int = 0
    #: Of all calls since the last decision, waiting or not; prompts as estimated at admission.
    arrived_prompt_tokens_per_s: float = 0.0
    #: The same calls times the mean output the gateway has learned.
    expected_output_tokens_per_s: float = 0.0
    #: Lines of batches at engines: they keep one, and are no reason for more (BAT-8).
    line_requests: int = 0

    @property
    def is_any(self) -> bool:
        return self.waiting_requests > 0 or self.arrived_prompt_tokens_per_s > 0 or self.line_requests > 0


class Bounds(msgspec.Struct, frozen=True):
    """What the operator allows. `min_replicas` 0 still means at least one, unless scale to zero is on."""

    min_replicas: int
    max_replicas: int
    #: Scale to zero: seconds without a call after which the last replica stops; None: never.
    scale_to_zero_after_s: float | None = None

    @property
    def is_fixed(self) -> bool:
        return self.min_replicas == self.max_replicas


class Tuning(msgspec.Struct, frozen=True):
    """Chosen by the judge on its tuning traces; no setting overrides them."""

    #: Share of the knee to fill: the rest is headroom for what arrives within one start-up.
    fill_ratio: float = 0.832
    #: Seconds over which arrivals are averaged for that: noise costs replicas because peaks are held.
    smoothing_s: float = 120.0
    #: A surge shows first in a shorter average, which is noisier and so gets less headroom.
    surge_fill_ratio: float = 0.92
    surge_smoothing_s: float = 20.0
    #: What a lull of minutes is followed by is as much as was usual before it: so much is kept.
    usual_fill_ratio: float = 0.84
    usual_smoothing_s: float = 1800.0
    #: Scale down only after the need has been lower for this many start-up times.
    hold_startups: float = 0.5


#: What the judge chose.
TUNING = Tuning()


class Peak(msgspec.Struct, frozen=True):
    """The highest need, in replicas, seen in one slice of time."""

    slice_number: int
    replicas: float


class Memory(msgspec.Struct, frozen=True):
    """State carried from one decision to the next; at most PEAKS + 1 peaks."""

    decided: int | None = None
    decided_at: float | None = None
    peaks: tuple[Peak, ...] = ()
    #: Arriving work, in replicas, smoothed; over the shorter time that shows a surge; and over the longer that is usual.
    arriving: float = 0.0
    surging: float = 0.0
    usual: float = 0.0
    #: When the model was last busy; None: not since this memory began with a fleet at zero.
    busy_at: float | None = None
    #: Replicas that were ready at the last decision.
    ready: int = 0


class Decision(msgspec.Struct, frozen=True):
    """Replicas wanted, the memory for the next decision, and one clause for logs."""

    replicas: int
    memory: Memory
    reason: str


def wanted(
    signals: Sequence[ReplicaSignal] | None,
    demand: Demand | None,
    bounds: Bounds,
    knee: Knee,
    memory: Memory,
    now: float,
    tuning: Tuning = TUNING,
) -> Decision:
    """The replicas this model should have; `now` in seconds.

    `signals` or `demand` None means no answer, or a directory that just started and lacks reports.
    """
    if bounds.is_fixed:
        return Decision(bounds.max_replicas, _decided(memory, bounds.max_replicas, now), "fixed")
    if signals is None or demand is None:
        held = _clamp(max(_floor(memory.decided, signals or ()), _found(memory, signals or ())), bounds)
        return Decision(held, _decided(memory, held, now), "no answer: as before")
    memory = _noticed(signals, demand, knee, memory, now, tuning)
    need, limit = _need(signals, demand, knee, memory, tuning)
    memory = _with_peak(memory, need, signals, knee.startup_s * tuning.hold_startups, now)
    peak = max(peak.replicas for peak in memory.peaks)
    replicas, reason = max(1, _whole(peak)), limit if need >= peak else f"{limit}, recent peak held"
    if _is_idle(bounds, memory, now):
        replicas, reason = 0, "idle"
    elif any(signal.age_s > STALE_S for signal in signals):
        replicas, reason = max(replicas, _floor(memory.decided, signals)), f"{reason}, reports stale"
    replicas = _clamp(replicas, bounds)
    ready = sum(signal.state is ReplicaState.READY for signal in signals)
    return Decision(replicas, msgspec.structs.replace(_decided(memory, replicas, now), ready=ready), reason)


def _need(
    signals: Sequence[ReplicaSignal], demand: Demand, knee: Knee, memory: Memory, tuning: Tuning
) -> tuple[float, str]:
    """Replicas needed now, and the limit that decides. Draining replicas are not capacity, and their load is not demand."""
    ready = [signal for signal in signals if signal.state is ReplicaState.READY]
    queued_tokens = sum(signal.queued_prefill_tokens for signal in ready) + demand.waiting_prompt_tokens
    queued = queued_tokens / knee.prefill_tokens_per_s / knee.startup_s
    arriving = max(
        memory.arriving / tuning.fill_ratio,
        memory.surging / tuning.surge_fill_ratio,
        memory.usual / tuning.usual_fill_ratio,
    )
    # A full replica accumulates requests however small the shortfall: these two say that more is needed, not how much.
    one_more = len(ready) + 1.0
    running = min(one_more, sum(signal.running_requests for signal in ready) / knee.running_requests)
    kv = min(one_more, sum(signal.kv_cache_used_ratio for signal in ready) / knee.kv_cache_ratio)
    return max(
        (arriving + queued, "arriving work"),
        (running, "running requests"),
        (kv, "committed KV"),
        (_late(len(ready), demand, knee, memory), "waiting room"),
    )


def _late(ready: int, demand: Demand, knee: Knee, memory: Memory) -> float:
    """Calls wait longer than the SLO: one more replica than are ready. Absolute, so that starting or failing replicas add none.

    A replica that has just become ready does not count: gateways may not have reported yet that its calls wait no
    longer.
    """
    if demand.waiting_requests == 0:
        return 0.0
    if demand.oldest_wait_s <= knee.ttft_slo_s:
        return 1.0
    return 1.0 + min(ready, memory.ready)


def _noticed(
    signals: Sequence[ReplicaSignal], demand: Demand, knee: Knee, memory: Memory, now: float, tuning: Tuning
) -> Memory:
    """The memory with this arrival rate averaged in, and the time of the last work."""
    arriving = (
        demand.arrived_prompt_tokens_per_s / knee.prefill_tokens_per_s
        + demand.expected_output_tokens_per_s / knee.decode_tokens_per_s
    )
    if not memory.peaks:
        began = now if signals else None
        # Nothing is usual yet: one second's arrivals would be held against the fleet for half an hour.
        memory = msgspec.structs.replace(memory, arriving=arriving, surging=arriving, busy_at=began)
    elapsed_s = now - (now if memory.decided_at is None else memory.decided_at)
    is_busy = demand.is_any or any(signal.running_requests + signal.waiting_requests for signal in signals)
    return msgspec.structs.replace(
        memory,
        arriving=_averaged(memory.arriving, arriving, elapsed_s / tuning.smoothing_s),
        surging=_averaged(memory.surging, arriving, elapsed_s / tuning.surge_smoothing_s),
        usual=_averaged(memory.usual, arriving, elapsed_s / tuning.usual_smoothing_s),
        busy_at=now if is_busy else memory.busy_at,
    )


def _averaged(average: float, value: float, elapsed: float) -> float:
    """Exponential moving average; `elapsed` in time constants."""
    return value + (average - value) * math.exp(-max(0.0, elapsed))


def _with_peak(memory: Memory, need: float, signals: Sequence[ReplicaSignal], hold_s: float, now: float) -> Memory:
    """The memory with this need; a new memory counts the running fleet as need, so that a restart of the directory shrinks nothing."""
    need = max(need, _found(memory, signals))
    current = math.floor(now / (hold_s / PEAKS))
    kept = {peak.slice_number: peak for peak in memory.peaks if current - PEAKS <= peak.slice_number <= current}
    before = kept.get(current)
    kept[current] = Peak(current, max(need, before.replicas if before else 0.0))
    return msgspec.structs.replace(memory, peaks=tuple(kept.values()))


def _found(memory: Memory, signals: Sequence[ReplicaSignal]) -> int:
    """The running and starting replicas that a new memory takes over: a restarted directory must not stop them."""
    return 0 if memory.peaks else sum(signal.state in COMING | {ReplicaState.READY} for signal in signals)


def _is_idle(bounds: Bounds, memory: Memory, now: float) -> bool:
    after_s = bounds.scale_to_zero_after_s
    return after_s is not None and (memory.busy_at is None or now - memory.busy_at >= after_s)


def _floor(decided: int | None, signals: Sequence[ReplicaSignal]) -> int:
    """The least to keep while reports are missing or stale: the last decision, and every busy replica."""
    busy = sum(signal.running_requests + signal.waiting_requests > 0 for signal in signals)
    return max(decided or 0, busy)


def _whole(replicas: float) -> int:
    """Rounded up, but not for a rounding error."""
    return math.ceil(replicas - 1e-9)


def _clamp(replicas: int, bounds: Bounds) -> int:
    lowest = bounds.min_replicas
    if lowest == 0 and bounds.scale_to_zero_after_s is None:
        lowest = 1
    return max(lowest, min(bounds.max_replicas, replicas))


def _decided(memory: Memory, replicas: int, now: float) -> Memory:
    return msgspec.structs.replace(memory, decided=replicas, decided_at=now)
