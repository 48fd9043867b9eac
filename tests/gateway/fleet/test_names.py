"""Names: what a client asks for, and what is served under it."""

from __future__ import annotations

import msgspec
import pytest

from serving.errors import ModelNotFound
from serving.gateway.fleet.demand import Demands
from serving.gateway.fleet.fleet import Fleet
from serving.gateway.fleet.names import NAME_CHARS_MAX, Names
from serving.wire import ListedModel
from tests.clock import Clock
from tests.gateway.fleet.reports import answer, report


def names(aliases: dict[str, str], *, unanswered: tuple[str, ...] = ()) -> Names:
    """Over a fleet that serves `m` with its adapter `x`."""
    clock = Clock()
    fleet = Fleet(unanswered, Demands(clock), clock, clock)
    listed = ListedModel("m", context_tokens=4096, default_output_tokens=64, adapters=("x",))
    fleet.take(msgspec.structs.replace(answer(report("1", adapters=("x",))), models=(listed,)), clock.now)
    return Names(fleet, aliases)


def test_an_alias_is_another_name_of_what_is_served() -> None:
    """Of a model or an adapter; a served name is its own."""
    one = names({"gpt-4o": "m", "tuned": "x"})
    assert [one.resolve(name) for name in ("gpt-4o", "tuned", "m", "x")] == ["m", "x", "m", "x"]


def test_a_name_that_no_source_serves_is_the_clients_mistake() -> None:
    """An alias of nothing too; the error repeats what was asked for, within bounds."""
    one = names({"old": "gone"})
    for name in ("old", "gone", "y" * 10_000):
        with pytest.raises(ModelNotFound) as refused:
            one.resolve(name)
        assert name[:NAME_CHARS_MAX] in refused.value.message and len(refused.value.message) < 400


def test_before_every_source_has_answered_no_name_is_unknown() -> None:
    """A missing model means "not yet" then."""
    assert names({}, unanswered=("directory",)).resolve("later") == "later"


def test_what_is_served_has_every_name_that_works() -> None:
    """Aliases of what is not served are left out."""
    served = names({"gpt-4o": "m", "tuned": "x", "old": "gone"}).served()
    assert {name: (model.name, model.base) for name, model in served.items()} == {
        "m": ("m", None),
        "x": ("x", "m"),
        "gpt-4o": ("m", None),
        "tuned": ("x", "m"),
    }


def test_the_default_limit_is_that_of_the_served_name() -> None:
    """An adapter has its model's."""
    one = names({})
    assert [one.default_output_tokens(name) for name in ("m", "x", "unknown")] == [64, 64, 0]
