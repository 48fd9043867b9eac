"""How many replicas are wanted: the rules of the policy, in virtual time."""

import math
import random

import msgspec
import pytest

from serving.catalog import Knee
from serving.engine.autoscale import (
    PEAKS,
    STALE_S,
    TUNING,
    Bounds,
    Decision,
    Demand,
    Memory,
    ReplicaSignal,
    wanted,
)
from serving.wire import ReplicaState

KNEE = Knee(running_requests=100, prefill_tokens_per_s=10_000, decode_tokens_per_s=5_000, startup_s=120, ttft_slo_s=2)
BOUNDS = Bounds(min_replicas=1, max_replicas=20)
QUIET = Demand()
#: Long enough that any peak is forgotten and any average has settled.
LONG_S = 5 * TUNING.usual_smoothing_s


def ready(count: int, running: int = 0, age_s: float = 0.0) -> list[ReplicaSignal]:
    return [
        ReplicaSignal(replica_id=str(number), state=ReplicaState.READY, running_requests=running, age_s=age_s)
        for number in range(count)
    ]


def in_state(count: int, state: ReplicaState, running: int = 0) -> list[ReplicaSignal]:
    return [
        ReplicaSignal(replica_id=f"{state}-{number}", state=state, running_requests=running) for number in range(count)
    ]


def arriving(replicas: float) -> Demand:
    """Arrivals whose prompts and outputs are that many replicas' work."""
    return Demand(
        arrived_prompt_tokens_per_s=replicas / 2 * KNEE.prefill_tokens_per_s,
        expected_output_tokens_per_s=replicas / 2 * KNEE.decode_tokens_per_s,
    )


class Following:
    """A policy asked every five seconds, and a fleet that is at once what it wants."""

    def __init__(self, bounds: Bounds = BOUNDS, memory: Memory | None = None) -> None:
        self.bounds = bounds
        self.memory = memory or Memory()
        self.now = 1000.0
        self.changes = 0

    def ask(self, signals: list[ReplicaSignal] | None, demand: Demand | None) -> Decision:
        self.now += 5.0
        before = self.memory.decided
        decision = wanted(signals, demand, self.bounds, KNEE, self.memory, self.now)
        self.memory = decision.memory
        self.changes += before is not None and before != decision.replicas
        return decision

    def settle(self, demand: Demand, seconds: float = LONG_S) -> int:
        for _ in range(round(seconds / 5)):
            self.ask(ready(self.memory.decided or 1), demand)
        return self.memory.decided or 0


def test_a_fixed_fleet_is_left_alone() -> None:
    """With equal bounds nothing seen or unseen changes the number."""
    policy = Following(Bounds(min_replicas=3, max_replicas=3, scale_to_zero_after_s=10))
    seen = [policy.ask(ready(3), arriving(50)), policy.ask(ready(3), QUIET), policy.ask(None, None)]
    assert [decision.replicas for decision in seen] == [3, 3, 3]


def test_up_goes_at_once_to_the_need() -> None:
    """A queue that eight replicas need one start-up for is answered by eight in one decision, not by one more."""
    policy = Following()
    policy.settle(arriving(1))
    queue = Demand(waiting_prompt_tokens=round(8 * KNEE.prefill_tokens_per_s * KNEE.startup_s))
    assert policy.ask(ready(2), queue).replicas >= 8


def test_arrivals_are_answered_before_they_queue() -> None:
    """Ten replicas' arrivals are answered by ten within three of the short averages, while every engine is at ease."""
    policy = Following()
    assert policy.settle(arriving(1)) == 2
    for _ in range(round(3 * TUNING.surge_smoothing_s / 5)):
        policy.ask(ready(2), arriving(10))
    assert (policy.memory.decided or 0) >= 10


def test_a_steady_load_keeps_the_larger_reserve() -> None:
    """What is sure to stay is given the room that a burst needs until more replicas have started."""
    assert Following().settle(arriving(8)) == math.ceil(8 / TUNING.fill_ratio) > math.ceil(8 / TUNING.surge_fill_ratio)


@pytest.mark.parametrize(
    ("signals", "demand"),
    [
        (ready(2), Demand(waiting_prompt_tokens=4_800_000, waiting_requests=100)),
        (ready(2, running=250), arriving(1)),
        ([msgspec.structs.replace(one, kv_cache_used_ratio=1.0) for one in ready(4)], arriving(1)),
        ([msgspec.structs.replace(one, queued_prefill_tokens=2_400_000) for one in ready(2)], arriving(0.5)),
        (ready(4), Demand(waiting_requests=1, oldest_wait_s=3)),
    ],
    ids=["waiting prompts", "running past the knee", "KV", "queued prefill", "waiting room past the SLO"],
)
def test_every_limit_alone_asks_for_more(signals: list[ReplicaSignal], demand: Demand) -> None:
    """Whichever limit is tightest counts, when all others are at ease."""
    policy = Following()
    policy.settle(arriving(0.5))
    policy.ask(signals, arriving(0.5))  # they have been ready for a while
    assert policy.ask(signals, demand).replicas > len(signals)


def test_down_waits_for_the_peak_to_pass() -> None:
    """The number falls only after the need has stayed lower for the hold, and to the need itself once the old load is no longer usual."""
    policy = Following()
    high = policy.settle(arriving(10))
    hold_s = KNEE.startup_s * TUNING.hold_startups
    assert policy.settle(arriving(1), hold_s - 10) == high
    assert policy.settle(arriving(1), 600) < high
    assert policy.settle(arriving(1)) == 2


def test_a_lull_leaves_what_was_usual() -> None:
    """After minutes of a lull the fleet still fits the last half hour's mean; hours later it is gone."""
    policy = Following()
    high = policy.settle(arriving(10))
    after_lull = policy.settle(arriving(2), 300)
    usual = 2 + 8 * math.exp(-300 / TUNING.usual_smoothing_s)
    assert math.ceil(2 / TUNING.fill_ratio) < after_lull == math.ceil(usual / TUNING.usual_fill_ratio) < high
    assert policy.settle(arriving(2)) == math.ceil(2 / TUNING.fill_ratio)


def test_a_new_memory_takes_nothing_for_usual() -> None:
    """A directory that starts within a surge of seconds keeps nothing of it for half an hour."""
    policy = Following()
    policy.ask(ready(1), arriving(10))
    assert policy.settle(arriving(1), 600) == 2


def test_a_rise_is_not_held_back_by_less_before() -> None:
    """What was usual is a floor and no more: once the two minutes' average is there, the fleet is what the new load alone would have."""
    policy = Following()
    policy.settle(arriving(1))
    assert policy.settle(arriving(10), 10 * TUNING.smoothing_s) == Following().settle(arriving(10))


def test_noise_does_not_flap() -> None:
    """Under a load that jumps by half around its mean every five seconds, an hour sees a handful of changes."""
    chance = random.Random(1)
    policy = Following()
    policy.settle(arriving(8), 600)
    policy.changes = 0
    for _ in range(720):
        policy.ask(ready(policy.memory.decided or 1), arriving(8 * chance.uniform(0.5, 1.5)))
    assert policy.changes <= 30


def test_replicas_on_their_way_are_counted_once() -> None:
    """While what was asked for starts, the same load asks for no more, whatever state the new ones report."""
    policy = Following()
    policy.settle(arriving(2))
    for _ in range(60):
        policy.ask(ready(3), arriving(10))
    asked = policy.memory.decided or 0
    for state in (ReplicaState.STARTING, ReplicaState.LOADING, ReplicaState.WARMING):
        late = msgspec.structs.replace(arriving(10), waiting_requests=5, oldest_wait_s=30)
        assert policy.ask(ready(3) + in_state(asked - 3, state), late).replicas == asked


def test_failed_replicas_cause_no_growth() -> None:
    """A fleet that fails at every start is asked for as before, however long calls wait."""
    policy = Following()
    late = Demand(waiting_requests=5, oldest_wait_s=60)
    seen = [policy.ask(in_state(number, ReplicaState.FAILED), late).replicas for number in range(20)]
    assert set(seen) == {1}


def test_a_failed_replica_is_no_capacity() -> None:
    """Work for five wants more than five, although five more are listed as failed."""
    policy = Following()
    policy.settle(arriving(5))
    assert policy.ask(ready(5) + in_state(5, ReplicaState.FAILED), arriving(5)).replicas == policy.settle(arriving(5))


def test_draining_leaves_no_phantom_load() -> None:
    """Streams that end on draining replicas hold no replica up."""
    policy = Following()
    policy.settle(QUIET)
    draining = in_state(10, ReplicaState.DRAINING, running=200)
    assert policy.ask(ready(1) + draining, QUIET).replicas == 1


def test_silence_holds_the_last_value() -> None:
    """No answer from replicas or from gateways is no news; busy replicas are never given up on it."""
    policy = Following()
    held = policy.settle(arriving(6))
    assert policy.ask(None, None).replicas == held
    assert policy.ask(ready(held), None).replicas == held
    assert policy.ask(None, QUIET).replicas == held
    assert Following().ask(ready(4, running=1), None).replicas == 4


def test_stale_reports_never_shrink_the_fleet() -> None:
    """With one report too old, the number stays at least as it was and at least what was busy."""
    policy = Following()
    held = policy.settle(arriving(6))
    for _ in range(1000):
        policy.ask(ready(held - 1) + ready(1, running=1, age_s=STALE_S + 1), QUIET)
    assert policy.memory.decided == held
    assert Following().ask(ready(7, running=1, age_s=STALE_S + 1), QUIET).replicas == 7


def test_a_restarted_directory_shrinks_nothing_at_once() -> None:
    """A policy without a memory takes the fleet it finds for a peak."""
    assert Following().ask(ready(7), arriving(1)).replicas == 7
    assert Following().ask(ready(3) + in_state(2, ReplicaState.LOADING), arriving(1)).replicas == 5
    hearing = Following()
    hearing.ask(None, None)
    assert hearing.ask(ready(7), arriving(1)).replicas == 7


def test_a_restarted_directory_wakes_nobody() -> None:
    """A fleet found at zero, where zero was chosen, stays there until somebody calls."""
    policy = Following(Bounds(0, 5, scale_to_zero_after_s=60))
    assert [policy.ask([], QUIET).replicas for _ in range(3)] == [0, 0, 0]
    assert policy.ask([], Demand(waiting_requests=1)).replicas == 1


def test_zero_is_a_choice() -> None:
    """Without it an idle fleet keeps one, even with a lower bound of zero; with it, zero after its time and not before."""
    assert Following(Bounds(0, 5)).settle(QUIET) == 1
    policy = Following(Bounds(0, 5, scale_to_zero_after_s=600))
    policy.settle(arriving(0.5), 60)
    assert policy.settle(QUIET, 595) == 1
    assert policy.settle(QUIET, 10) == 0


def test_one_request_keeps_the_last_replica() -> None:
    """A stream longer than the idle time is not idleness."""
    policy = Following(Bounds(0, 5, scale_to_zero_after_s=60))
    seen = [policy.ask(ready(1, running=1), QUIET).replicas for _ in range(100)]
    assert seen == [1] * 100


def test_zero_wakes_at_once() -> None:
    """One held call is enough, and waiting for the start asks for no second replica."""
    policy = Following(Bounds(0, 5, scale_to_zero_after_s=60))
    assert policy.settle(QUIET) == 0
    held = Demand(waiting_requests=1, waiting_prompt_tokens=100)
    assert policy.ask([], held).replicas == 1
    for waited_s in range(5, 120, 5):
        late = msgspec.structs.replace(held, oldest_wait_s=float(waited_s))
        assert policy.ask(in_state(1, ReplicaState.LOADING), late).replicas == 1


@pytest.mark.parametrize("seed", range(20))
def test_more_demand_never_wants_less(seed: int) -> None:
    """Raising any figure of demand or load, all else equal, lowers nothing; bounds always hold."""
    chance = random.Random(seed)
    policy = Following(Bounds(2, 9))
    for _ in range(100):
        demand = Demand(
            waiting_requests=chance.randrange(3),
            oldest_wait_s=chance.uniform(0, 4),
            waiting_prompt_tokens=chance.randrange(100_000),
            arrived_prompt_tokens_per_s=chance.uniform(0, 60_000),
            expected_output_tokens_per_s=chance.uniform(0, 30_000),
        )
        signals = ready(chance.randrange(1, 9), running=chance.randrange(150))
        figure = chance.choice(Demand.__struct_fields__)
        more = msgspec.structs.replace(demand, **{figure: getattr(demand, figure) * 2 + 1})
        busier = [msgspec.structs.replace(one, running_requests=one.running_requests + 50) for one in signals]
        memory, now = policy.memory, policy.now + 5
        decided = policy.ask(signals, demand).replicas
        assert 2 <= decided <= 9
        assert wanted(signals, more, policy.bounds, KNEE, memory, now).replicas >= decided
        assert wanted(busier, demand, policy.bounds, KNEE, memory, now).replicas >= decided


def test_the_memory_is_bounded() -> None:
    """A week of decisions leaves a memory as small as an hour's, and it survives JSON."""
    policy = Following()
    chance = random.Random(1)
    for _ in range(5000):
        policy.ask(ready(3), arriving(chance.uniform(0, 9)))
        policy.now += chance.uniform(0, 200)
        assert len(policy.memory.peaks) <= PEAKS + 1
    assert msgspec.json.decode(msgspec.json.encode(policy.memory), type=Memory) == policy.memory
