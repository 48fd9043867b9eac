"""Choice: the first of the ranking for each call, kept as calls and reports come and go."""

from __future__ import annotations

import random

import msgspec

from serving.gateway.fleet.choice import AVERAGED_S, LOOKED_AT
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.router import Candidate, Need, rank
from serving.wire import DirectoryAnswer, EngineLoad, ReplicaState
from tests.clock import Clock
from tests.gateway.fleet.reports import answer, report

NAMES = ("a", "b", "c")


class World:
    def __init__(self, *replica_ids: str, adapters: tuple[str, ...] = (), seed: int = 1) -> None:
        self.clock = Clock()
        self.fleet = Fleet([], Demands(self.clock), self.clock, self.clock, random_=random.Random(seed).random)
        self.take(answer(*(report(it, adapters=adapters) for it in replica_ids)))

    def take(self, said: DirectoryAnswer) -> None:
        self.clock.advance(1)
        self.fleet.take(said, self.clock.now)

    def best(self, need: Need, model: str = "m", suspects: frozenset[str] = frozenset()) -> str | None:
        best = self.fleet.best(model, need, suspects)
        return best.replica_id if best else None

    def send(self, need: Need) -> str:
        """A call that is over at once."""
        chosen = self.best(need)
        assert chosen is not None
        with self.fleet.committed(chosen, need):
            return chosen


def need(*prefix: int, prompt_tokens: int = 4_000) -> Need:
    return Need(prompt_tokens, 100.0, prefix, 1_000.0)


def test_the_next_turn_goes_where_the_one_before_went() -> None:
    """Other calls take turns meanwhile; another conversation goes elsewhere."""
    world = World(*NAMES)
    first = world.send(need(1, 2))
    assert [world.send(need(number)) for number in (10, 11)] == [it for it in NAMES if it != first]
    assert world.send(need(1, 2, 3, 4)) == first


def test_a_hot_prefix_spills_before_it_queues() -> None:
    """Open calls with one prefix use a second replica once waiting costs more than the prefix saves; then both have it."""
    world = World(*NAMES)
    hot = need(1, 2, 3, 4)
    first = world.send(hot)
    with world.fleet.committed(first, need(prompt_tokens=3_000)):
        assert world.best(hot) == first
        with world.fleet.committed(first, need(prompt_tokens=3_000)):
            second = world.send(hot)
            assert second != first
            with world.fleet.committed(second, need(prompt_tokens=3_000)):
                assert world.best(hot) == second


def test_a_call_is_not_sent_to_a_suspected_replica() -> None:
    """Whatever prefix it has; None when all are suspected."""
    world = World(*NAMES)
    first = world.send(need(1))
    assert world.best(need(1), suspects=frozenset({first})) != first
    assert world.best(need(1), suspects=frozenset(NAMES)) is None
    assert world.best(need(1), "other") is None and not world.fleet.is_ready("other") and world.fleet.is_ready("m")


def test_an_adapters_calls_go_to_replicas_that_offer_it() -> None:
    """Even where another has its prefix."""
    world = World("a")
    world.send(need(1))
    world.take(answer(report("a"), report("b", adapters=("x",))))
    assert world.best(need(1), "x") == "b" and world.best(need(1)) == "a"


def test_a_replica_that_restarted_has_no_prefix() -> None:
    """It was not ready meanwhile, left, refused a connection, or its counters began anew."""
    gone = answer(report("b"), report("c"))
    loading = answer(report("a", ReplicaState.LOADING), report("b"), report("c"))
    for between in (gone, loading, None):
        world = World(*NAMES)
        first = world.send(need(1, 2))
        assert first == "a"
        if between:
            world.take(between)
        else:
            world.fleet.report_lost("a")
        assert world.best(need(1, 2)) != "a"
        world.take(answer(*map(report, NAMES)))
        assert {it.cached_tokens for it in world.fleet.candidates("m", need(1, 2))} == {0}


def test_engines_own_figures_arrive() -> None:
    """The size of the cache and its counters, by which prefixes are forgotten."""
    world = World("a")
    world.send(need(1, 2))
    for queried in (0, 4_000, 10_000):
        load = EngineLoad(kv_cache_tokens=5_000, prefix_queried_tokens=queried)
        world.take(answer(msgspec.structs.replace(report("a"), load=load)))
    assert [it.cached_tokens for it in world.fleet.candidates("m", need(1, 2))] == [0]


def test_the_choice_is_the_first_of_the_ranking() -> None:
    """Of a fleet that is looked at as a whole, after any calls: kept figures are those that a ranking of all would see."""
    chance = random.Random(7)
    world = World(*(f"r{number:02}" for number in range(LOOKED_AT)))
    stay = [world.fleet.committed(f"r{chance.randrange(LOOKED_AT):02}", need(prompt_tokens=900)) for _ in range(40)]
    for call in stay:
        call.__enter__()
    for turn in range(300):
        asked = need(*range(100 * chance.randrange(9), 100 * chance.randrange(9) + chance.randrange(8)))
        asked = msgspec.structs.replace(asked, prompt_tokens=chance.randrange(9_000))
        expected = rank(world.fleet.candidates("m", asked))[0].replica_id
        assert world.send(asked) == expected, turn
    for call in stay:
        call.__exit__(None, None, None)
    assert {it.committed_tokens for it in world.fleet.candidates("m")} == {0}


def test_of_a_large_fleet_a_call_looks_at_a_few() -> None:
    """All of them in turn, so that each gets calls; and at the one with its prefix wherever it is."""
    count = 4 * LOOKED_AT + 1
    world = World(*(f"r{number:03}" for number in range(count)))
    first = world.send(need(1, 2, 3))
    chosen = {world.send(need(1_000 + number)) for number in range(5 * count)}
    assert len(chosen) == count and world.best(need(1, 2, 3)) == first


def beside_others(seed: int, running: int) -> World:
    """A gateway with two requests on a replica, of so many on each."""
    world = World(*NAMES, seed=seed)
    busy = answer(*(report(it, running=running) for it in NAMES))
    for _ in range(5):
        world.take(busy)
        with world.fleet.committed("a", need()), world.fleet.committed("a", need()):
            world.take(busy)
    world.clock.advance(AVERAGED_S / 10)
    return world


def test_gateways_that_see_the_fleet_late_do_not_all_choose_the_same() -> None:
    """Where most requests are other gateways', a call takes one of the least committed by chance; a lone gateway, the least."""
    for running, spread in ((0, 1), (60, 3)):
        world = beside_others(1, running)
        assert len({world.best(need()) for _ in range(40)}) == spread


def test_gateways_agree_where_a_conversation_is_at_home() -> None:
    """Its next turn may come through another one, which does not know its prefix. A lone gateway knows all there are."""
    gateways = [beside_others(seed, 60) for seed in range(4)]
    first_turns = [need(conversation * 2**61 + 99, prompt_tokens=8_000) for conversation in range(8)]
    homes = [{world.best(turn) for world in gateways} for turn in first_turns]
    assert {len(agreed) for agreed in homes} == {1}
    assert len(set().union(*homes)) > 1, "not all conversations live together"
    lone = World(*NAMES)
    assert [lone.send(need(conversation * 2**61 + 99)) for conversation in range(3)] == list(NAMES)


def test_a_candidate_says_where_its_engine_is() -> None:
    """What the relay needs of it."""
    (one,) = World("a").fleet.candidates("m")
    assert isinstance(one, Candidate) and one.url == "http://a"
