"""The directory decides how many engines each model should have, from what replicas and gateways say."""

import msgspec
import pytest

from serving import catalog
from serving.catalog import Knee
from serving.config import EngineSettings, ModelSettings
from serving.engine import scaling
from serving.engine.autoscale import Bounds
from serving.engine.command import EngineSpec
from serving.engine.directory import COMPLETE_AFTER_S, EXPIRY_S, Listing
from serving.engine.pool import Node
from serving.engine.scaling import PLACING_S, Arrivals, ModelPlan, Plans
from serving.errors import Refusal
from serving.wire import EngineLoad, GatewayReport, ListedModel, ReplicaReport, ReplicaState, Task, Traffic
from tests.clock import Clock

KNEE = Knee(running_requests=4, prefill_tokens_per_s=1000, decode_tokens_per_s=100, startup_s=10)
WAITING = Traffic(waiting_requests=1, waiting_prompt_tokens=10)


def plan(lowest: int, most: int, sleep_after_s: float | None = None) -> ModelPlan:
    return ModelPlan("m", 4096, Bounds(lowest, most, sleep_after_s), default_output_tokens=512, knee=KNEE)


def listing(clock: Clock, *plans: ModelPlan) -> Listing:
    """A directory that has heard from everyone."""
    it = Listing("cell", "one", clock)
    it.plan(Plans(plans))
    clock.advance(COMPLETE_AFTER_S)
    return it


def report(replica_id: str, running_requests: int = 0, rank: int = 0) -> ReplicaReport:
    load = EngineLoad(running_requests=running_requests)
    return ReplicaReport(replica_id, "m", "http://127.0.0.1:1", ReplicaState.READY, load=load, rank=rank)


def test_a_young_directory_wants_nothing_yet() -> None:
    """Until everyone has had time to report it does not say a number, which would shrink a fleet it has not heard."""
    clock = Clock()
    it = Listing("cell", "one", clock)
    it.plan(Plans((plan(1, 3),)))
    assert it.wanted() is None
    assert it.answer().models == (ListedModel("m", 4096, default_output_tokens=512),)
    clock.advance(COMPLETE_AFTER_S)
    it.record_gateway(GatewayReport("g"))
    assert it.wanted() == {"m": 1}


def test_a_call_that_waits_wakes_a_sleeping_model() -> None:
    """None while nobody asks; one as soon as a gateway holds a call; none again when it has been idle."""
    clock = Clock()
    it = listing(clock, plan(0, 2, sleep_after_s=30))
    it.record_gateway(GatewayReport("g"))
    assert it.wanted() == {"m": 0} and it.answer().models[0].may_sleep
    clock.advance(1)
    it.record_gateway(GatewayReport("g", traffic={"m": WAITING}))
    assert it.wanted() == {"m": 1}
    for _ in range(40):
        it.record(report("a"))
        it.record_gateway(GatewayReport("g"))
        it.wanted()
        clock.advance(1)
    assert it.wanted() == {"m": 0}


def test_a_model_that_woke_is_not_wanted_twice() -> None:
    """The gateway's word of the call that waited is a moment old when its replica is ready."""
    clock = Clock()
    it = listing(clock, plan(0, 2, sleep_after_s=30))
    waiting = Traffic(waiting_requests=1, oldest_wait_s=60.0, waiting_prompt_tokens=10)
    seen = []
    for state, traffic in (
        (ReplicaState.LOADING, waiting),
        (ReplicaState.READY, waiting),
        (ReplicaState.READY, Traffic()),
        (ReplicaState.READY, Traffic()),
    ):
        it.record(msgspec.structs.replace(report("a"), state=state))
        it.record_gateway(GatewayReport("g", traffic={"m": traffic}))
        seen.append(it.wanted())
        clock.advance(1)
    assert seen == [{"m": 1}] * 4


def test_lines_of_batches_keep_one_engine_and_are_no_reason_for_more() -> None:
    """A fleet that they fill shrinks as it would without them, and does not sleep while they run; what other calls need is not less for them."""
    clock = Clock()
    it = listing(clock, plan(0, 3, sleep_after_s=30))
    lines = GatewayReport("g", traffic={"m": Traffic(line_requests=8)})
    wanted = []
    for running in (4, 4, 4, 8):
        for _ in range(40):
            for name in ("a", "b"):
                it.record(report(name, running))
            it.record_gateway(lines if running == 4 else GatewayReport("g", traffic={"m": Traffic(line_requests=12)}))
            wanted.append((it.wanted() or {})["m"])
            clock.advance(1)
    # Two were found running; four calls of other clients, two at each, are one engine's.
    assert wanted[0] == 2 and set(wanted[40:]) == {1}
    for _ in range(40):
        it.record(report("a"))
        it.record_gateway(GatewayReport("g"))
        it.wanted()
        clock.advance(1)
    assert it.wanted() == {"m": 0}


def test_a_directory_that_restarts_before_any_gateway_has_spoken_keeps_the_fleet() -> None:
    """Five idle engines that it finds are not taken away because nobody has told it why they run."""
    clock = Clock()
    it = Listing("cell", "two", clock)
    it.plan(Plans((plan(0, 9, sleep_after_s=30),)))
    clock.advance(COMPLETE_AFTER_S)
    for index in range(5):
        it.record(report(str(index)))
    assert it.wanted() == {"m": 5}


def test_what_comes_between_two_decisions_counts() -> None:
    """A gateway reports twice as often as is decided: calls that only the first report told are demand too."""
    clock = Clock()
    it = listing(clock, plan(0, 2, sleep_after_s=5))
    for _ in range(10):
        it.record(report("a"))
        it.record_gateway(GatewayReport("g", 0.5, {"m": Traffic(arrived_prompt_tokens=1.0)}))
        it.record_gateway(GatewayReport("g", 0.5))
        last = it.wanted()
        clock.advance(1)
        assert last == {"m": 1}


def test_arrivals_of_a_long_silence_are_no_surge() -> None:
    """What a gateway kept for a directory that was away counts as what came in just now."""
    told = [Arrivals(0.0), Arrivals(0.0)]
    told[0].record(GatewayReport("g", 60.0, {"m": Traffic(arrived_prompt_tokens=6000.0)}))
    told[1].record(GatewayReport("g", 2.0, {"m": Traffic(arrived_prompt_tokens=200.0)}))
    rates = [it.demand([], 2.0)["m"].arrived_prompt_tokens_per_s for it in told]
    assert rates == [100.0, 100.0]


def test_another_knee_forgets_no_engine() -> None:
    """A live change of what one engine does begins a new memory, which takes the fleet that it finds."""
    clock = Clock()
    it = listing(clock, plan(1, 9))
    for index in range(6):
        it.record(report(str(index)))
    it.record_gateway(GatewayReport("g"))
    assert it.wanted() == {"m": 6}
    it.plan(Plans((msgspec.structs.replace(plan(1, 9), knee=KNEE.model_copy(update={"startup_s": 5})),)))
    clock.advance(1)
    assert it.wanted() == {"m": 6}


def test_gateways_add_up() -> None:
    """Each sees its own part of the arrivals; together they need more engines than either."""
    clock = Clock()
    it = listing(clock, plan(1, 9))
    it.record(report("a"))
    for gateway in ("g", "h"):
        it.record_gateway(
            GatewayReport(gateway, traffic={"m": Traffic(arrived_prompt_tokens=1000.0 * COMPLETE_AFTER_S)})
        )
    assert it.wanted() == {"m": 3}


def test_without_gateways_nothing_changes() -> None:
    """Nobody to say what is asked for: the fleet stays as it was decided last."""
    clock = Clock()
    it = listing(clock, plan(1, 9))
    it.record(report("a"))
    it.record_gateway(GatewayReport("g", traffic={"m": Traffic(arrived_prompt_tokens=2000.0 * COMPLETE_AFTER_S)}))
    before = it.wanted()
    for _ in range(int(EXPIRY_S) + 100):
        clock.advance(1)
        it.record(report("a"))
    assert it.wanted() == before == {"m": 3}


def test_an_engine_over_two_nodes_counts_once() -> None:
    """Only the first member of an engine serves; the others' reports are not more engines."""
    clock = Clock()
    it = listing(clock, plan(1, 9))
    it.record(report("a", running_requests=8))
    it.record(report("b", running_requests=8, rank=1))
    it.record_gateway(GatewayReport("g"))
    assert it.wanted() == {"m": 2}


def test_new_bounds_take_effect_and_a_removed_model_is_gone() -> None:
    """Settings change while the directory runs."""
    clock = Clock()
    it = listing(clock, plan(1, 9))
    it.record_gateway(GatewayReport("g"))
    assert it.wanted() == {"m": 1}
    it.plan(Plans((plan(2, 9),)))
    assert it.wanted() == {"m": 2}
    it.plan(Plans())
    assert it.wanted() == {} and it.answer().models == ()


def test_a_fleet_that_may_change_needs_a_knee() -> None:
    """Where nothing says what one engine does, only a fixed fleet is accepted."""
    spec = EngineSpec("random-gpt-oss", "", Task.GENERATE, 4096, EngineSettings(), "", "", "")
    model = catalog.find("random-gpt-oss")
    scaling.plan(model, ModelSettings(name=model.name), spec, None)
    with pytest.raises(Refusal, match="knee"):
        scaling.plan(model, ModelSettings(name=model.name, max_replicas=2), spec, None)


def shared_pool(clock: Clock, nodes_may_grow: bool = False) -> Listing:
    """One node of eight GPUs; `m` may have eight engines of one GPU, `big` comes first and has one of four."""
    big = ModelPlan("big", 4096, Bounds(1, 1), priority=1, gpus_per_node=4)
    small = msgspec.structs.replace(plan(1, 8), gpus_per_node=1)
    it = Listing("cell", "one", clock)
    it.plan(Plans((small, big), nodes_may_grow))
    it.set_nodes([Node("n", 8, "H100")])
    clock.advance(COMPLETE_AFTER_S)
    it.record_gateway(GatewayReport("g", traffic={"m": Traffic(arrived_prompt_tokens=6000.0 * COMPLETE_AFTER_S)}))
    return it


def test_models_share_the_gpus_by_priority() -> None:
    """Whoever comes first leaves the rest, and who gets less is told why."""
    it = shared_pool(Clock())
    assert it.wanted() == {"m": 4, "big": 1}
    (small, _) = it.answer().models
    assert small.shortage and "4 of 8 engines granted" in small.shortage and "big" in small.shortage


def test_where_nodes_may_grow_nobody_is_capped() -> None:
    """An engine that waits is what makes a cluster add a node."""
    assert shared_pool(Clock(), nodes_may_grow=True).wanted() == {"m": 8, "big": 1}


def test_an_engine_that_finds_no_place_says_what_it_waits_for() -> None:
    """Small engines hold parts of the only node: the large one is granted, and waits for them to go."""
    clock = Clock()
    it = shared_pool(clock)

    def pass_s(seconds: int) -> None:
        for _ in range(seconds):
            for index in range(6):
                it.record(msgspec.structs.replace(report(str(index)), node="n", devices=(str(index),)))
            it.wanted()
            clock.advance(1)

    pass_s(2)
    assert {model.name: model.shortage for model in it.answer().models}["big"] is None  # it may be on its way
    pass_s(int(PLACING_S))
    reasons = {model.name: model.shortage for model in it.answer().models}
    assert reasons["big"] == (
        "waits for a node with 4 free GPUs; the freest has 2, all together 2: other engines must stop first"
    )
