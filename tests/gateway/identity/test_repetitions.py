"""Repetitions: a creation happens once, on either database, whoever asks how often."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from serving.config import StoreSettings
from serving.errors import Conflict, IdempotencyKeyReused
from serving.gateway.identity import repetitions
from serving.gateway.identity.keyring import Keyring
from serving.gateway.identity.registry import Registry
from serving.gateway.identity.repetitions import Asked, Repetitions
from serving.gateway.nouns import Caller
from serving.gateway.store.store import Store
from tests.clock import Clock
from tests.gateway.places import Place
from tests.gateway.processes import at_once

CALLER = Caller("t1", "acme", "k1")
ASKED = Asked(CALLER, "key", b"a tenant")


def opened(store: Store, clock: Clock | None = None) -> tuple[Registry, Repetitions]:
    """One gateway's."""
    keyring = Keyring.open(store)
    clock = clock or Clock()
    return Registry(store, keyring, clock), Repetitions(keyring.derived(repetitions.PURPOSE), clock)


def new_key(registry: Registry) -> bytes:
    registry.create_tenant("acme")
    return registry.create_key("acme").encode()


def test_the_second_gateway_gives_the_answer_of_the_first(store: Store) -> None:
    """As after a crash between a creation and its answer: what is kept is both or neither."""
    (first, first_kept), (second, second_kept) = opened(store), opened(store)
    answer = first_kept.once(first, ASKED, new_key)
    assert second_kept.once(second, ASKED, new_key) == answer
    assert len(first.keys()) == 1


def test_what_fails_leaves_nothing(store: Store) -> None:
    """Neither what was made before it failed nor an answer: the next one begins anew."""
    registry, kept = opened(store)

    def fail(acts: Registry) -> bytes:
        new_key(acts)
        raise Conflict("broken off")

    with pytest.raises(Conflict):
        kept.once(registry, ASKED, fail)
    assert registry.tenants() == []
    assert kept.once(registry, ASKED, new_key)


@pytest.mark.parametrize("other", [Asked(CALLER, "key", b"another"), Asked(CALLER, "key", b"")])
def test_another_request_under_the_same_key_is_refused(store: Store, other: Asked) -> None:
    """It is a mistake of the client's, and neither request's answer would be right."""
    registry, kept = opened(store)
    kept.once(registry, ASKED, new_key)
    with pytest.raises(IdempotencyKeyReused):
        kept.once(registry, other, new_key)


@pytest.mark.parametrize(
    "caller", [Caller("t2", "acme", "k1"), Caller("t1", "acme", "k2"), Caller("t1", "acme", "k1", user_ref="u")]
)
def test_an_answer_is_its_callers(store: Store, caller: Caller) -> None:
    """The same word from another tenant, key or person is another creation."""
    registry, kept = opened(store)
    kept.once(registry, ASKED, lambda _: b"the first one's")
    assert kept.once(registry, Asked(caller, "key", b"a tenant"), lambda _: b"another's") == b"another's"


def test_an_answer_is_kept_for_a_day_and_sealed(place: Place, store: Store) -> None:
    """The database holds no key, and after a day nothing at all."""
    clock = Clock()
    registry, kept = opened(store, clock)
    answer = kept.once(registry, ASKED, new_key)
    ((sealed,),) = place.execute("select sealed from idempotency")
    assert isinstance(sealed, bytes) and answer not in sealed and answer[3:13] not in sealed
    clock.advance(repetitions.KEPT_S - 1)
    assert kept.once(registry, ASKED, new_key) == answer
    clock.advance(1)
    kept.remove_old(registry)
    assert place.execute("select count(*) from idempotency") == [(0,)]


def _ask(home: Path, settings: StoreSettings) -> bytes:
    with Store.open(home, settings) as store:
        keyring = Keyring.open(store)
        kept = Repetitions(keyring.derived(repetitions.PURPOSE), time.time)
        return kept.once(Registry(store, keyring, time.time), ASKED, new_key)


def test_several_gateways_at_once_make_one(place: Place, store: Store) -> None:
    """Processes that begin together: one makes it, and all of them say the same."""
    registry, _ = opened(store)
    assert len(set(at_once(4, _ask, place.home, place.settings))) == 1
    assert len(registry.keys()) == 1
