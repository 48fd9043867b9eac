"""Changes: each is learned once, in order, by every gateway that follows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from serving.gateway.identity import changes
from serving.gateway.identity.changes import Change, Follower, Kind, News
from serving.gateway.store.store import Store
from tests.gateway.places import Place


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.open() as store:
        yield store


def change(store: Store, *subjects: str) -> None:
    with store.begin() as connection:
        changes.note(connection, *(Change(Kind.KEY, subject) for subject in subjects))


def learned(news: News) -> list[str] | None:
    return None if news.changes is None else [it.subject for it in news.changes]


def test_a_change_is_learned_once(store: Store) -> None:
    """What was there before the first question counts as anything; after it, each change comes in its order."""
    change(store, "before")
    first = changes.since(store, None)
    assert learned(first) is None
    change(store, "a", "b")
    second = changes.since(store, first.revision)
    assert learned(second) == ["a", "b"]
    assert learned(changes.since(store, second.revision)) == []


def test_more_changes_than_are_kept_may_be_anything(store: Store) -> None:
    """Old ones are removed, and a gateway that has slept through them forgets all."""
    first = changes.since(store, None)
    with store.begin() as connection:
        changes.note(connection, *(Change(Kind.KEY, subject) for subject in "abcde"), kept=3)
    assert learned(changes.since(store, first.revision)) is None
    assert learned(changes.since(store, first.revision + 3)) == ["d", "e"]


def test_a_store_that_counts_anew_may_have_changed_in_any_way(store: Store) -> None:
    """A backup was restored into it."""
    change(store, "a")
    assert learned(changes.since(store, 1_000)) is None


def test_followers_learn_what_another_process_changes(place: Place) -> None:
    """And an outage in between takes nothing from them."""
    seen: list[list[str] | None] = []
    with place.open() as mine, place.open() as theirs:
        follower = Follower(mine, lambda news: seen.append(learned(news)))
        asyncio.run(follower.catch_up())
        asyncio.run(follower.catch_up())
        change(theirs, "a")
        place.take_away()
        asyncio.run(follower.catch_up())
        place.bring_back()
        asyncio.run(follower.catch_up())
        change(theirs, "b")
        asyncio.run(follower.catch_up())
    assert seen == [None, ["a"], ["b"]]
