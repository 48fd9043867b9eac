"""Fleet: which models there are, and what each has of replicas."""

from __future__ import annotations

import msgspec

from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.router import CALL_TOKENS
from serving.wire import ListedModel, ReplicaState
from tests.clock import Clock
from tests.gateway.fleet.reports import answer, report


def fleet(clock: Clock) -> Fleet:
    return Fleet([], Demands(clock), clock, clock)


def test_our_share_of_a_report_is_what_we_had_when_it_arrived() -> None:
    """Requests that begin after a report are added to it; those it already counted are not. Others' are half done."""
    clock = Clock()
    one = fleet(clock)
    one.take(answer(report("1")), clock.now)
    with one.committed("1"):
        clock.advance(1)
        one.take(answer(report("1", running=3)), clock.now)
        with one.committed("1"):
            (candidate,) = one.candidates("m")
    assert candidate.committed_tokens == 2 * CALL_TOKENS + 2 * CALL_TOKENS / 2


def test_a_model_without_replicas_is_remembered_for_a_while() -> None:
    """While its replicas restart a model is "not ready", not "unknown"; a model that no source ever listed is unknown."""
    clock = Clock()
    one = fleet(clock)
    one.take(answer(report("1")), clock.now)
    one.take(answer(), clock.now)
    assert one.may_know("m") and not one.may_know("never") and one.models() == []
    clock.advance(3601)
    assert not one.may_know("m")


def test_an_adapter_is_unknown_as_soon_as_it_is_withdrawn() -> None:
    """Its model's replicas restarting is "not ready"; one that is ready and no longer offers it is "unknown"."""
    clock = Clock()
    one = fleet(clock)
    known = []
    for said in (answer(report("1", adapters=("x",))), answer(report("1", ReplicaState.FAILED)), answer(report("1"))):
        clock.advance(1)
        one.take(said, clock.now)
        known.append(one.may_know("x"))
    assert known == [True, True, False] and one.may_know("m") and not one.may_know("never")
    assert [it.name for it in one.models()] == ["m"] and one.adapters() == []


def test_a_model_that_sleeps_is_known() -> None:
    """A cell lists a model without a replica: it is served, may be slow to wake, and shows how many replicas are wanted."""
    clock = Clock()
    one = fleet(clock)
    asleep = ListedModel("m", context_tokens=4096, wanted=0, may_sleep=True)
    one.take(msgspec.structs.replace(answer(), models=(asleep,)), clock.now)
    assert one.may_know("m") and one.lists("m") and one.may_sleep("m") and not one.may_sleep("other")
    (model,) = one.models()
    assert (model.name, model.context_tokens, model.states, model.wanted) == ("m", 4096, {}, 0)
    one.take(answer(), clock.now)  # removed from the settings
    assert one.models() == [] and not one.may_sleep("m") and not one.may_know("m")


def test_an_adapter_of_a_sleeping_model_is_known_until_replicas_say_otherwise() -> None:
    """The settings' word counts while no replica runs; a replica that refused the adapter knows better."""
    clock = Clock()
    one = fleet(clock)
    asleep = ListedModel("m", adapters=("x", "broken"), wanted=0, may_sleep=True)
    one.take(msgspec.structs.replace(answer(), models=(asleep,)), clock.now)
    assert [it.name for it in one.adapters()] == ["broken", "x"] and one.may_know("x") and one.may_sleep("x")
    assert one.base_of("x") == "m"
    clock.advance(1)
    one.take(msgspec.structs.replace(answer(report("1", adapters=("x",))), models=(asleep,)), clock.now)
    assert [it.name for it in one.adapters()] == ["x"] and one.may_know("x") and not one.may_know("broken")


def test_a_name_may_change_its_meaning() -> None:
    """What was an adapter becomes a model of its own, and is known as that."""
    clock = Clock()
    one = fleet(clock)
    one.take(answer(report("1", adapters=("x",))), clock.now)
    assert one.base_of("x") == "m"
    clock.advance(1)
    one.take(answer(report("1"), report("2", model="x")), clock.now)
    assert one.base_of("x") == "x" and one.may_know("x") and one.candidates("x")


def test_a_models_default_output_is_known_for_its_adapters_too() -> None:
    """As its cell says, never above its context; 0 where there is none."""
    clock = Clock()
    one = fleet(clock)
    listed = ListedModel("m", context_tokens=4096, default_output_tokens=8192, adapters=("x",))
    one.take(msgspec.structs.replace(answer(), models=(listed,)), clock.now)
    assert [one.default_output_tokens(name) for name in ("m", "x", "other")] == [4096, 4096, 0]


def test_where_cells_differ_the_least_default_output_counts() -> None:
    """A call may go to any of them; a cell of a release without the setting changes nothing, whichever answered last."""
    clock = Clock()
    one = fleet(clock)
    for cell, tokens in (("a", 2048), ("b", 1024), ("c", 0)):
        listed = ListedModel("m", context_tokens=4096, default_output_tokens=tokens)
        one.take(msgspec.structs.replace(answer(cell=cell), models=(listed,)), clock.now)
    assert one.default_output_tokens("m") == 1024


def test_gateways_are_those_that_a_cell_counts() -> None:
    """Each asks all cells: the most that one has seen; 0 where none counts them."""
    clock = Clock()
    one = fleet(clock)
    assert one.count_gateways() == 0
    for cell, gateways in (("a", 4), ("b", 3), ("a", 2)):
        one.take(msgspec.structs.replace(answer(cell=cell), gateways=gateways), clock.now)
    assert one.count_gateways() == 3


def test_warnings_are_those_of_each_cells_last_answer() -> None:
    """One that is over is gone with the next answer of its cell; cells that say the same say it once."""
    clock = Clock()
    one = fleet(clock)
    for cell, warnings in (("a", ("x", "y")), ("b", ("x",)), ("a", ("x",))):
        one.take(msgspec.structs.replace(answer(cell=cell), warnings=warnings), clock.now)
    assert one.warnings() == ["x"]
