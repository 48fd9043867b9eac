"""Conversations: items one after another, each once, in either database."""

from __future__ import annotations

import pytest

from serving.errors import ContextExceeded, ResourceNotFound
from serving.gateway.store.store import Store
from serving.gateway.stored import conversations, items
from serving.gateway.stored.items import Asked
from tests.gateway.places import Place
from tests.gateway.stored.shelves import ADA, KEPT_S, Shelves, texts


@pytest.fixture
def kept(store: Store, place: Place) -> Shelves:
    return Shelves(store, place.home)


def test_items_keep_their_order_and_are_read_by_pages(kept: Shelves) -> None:
    """Newest first or oldest first, behind any of them; one that is sent twice is there twice, under two ids."""
    first = items.said("one")
    talk = kept.conversations.begin(ADA, {}, first)
    kept.conversations.add(ADA, talk.id, items.said("two"))
    again = kept.conversations.add(ADA, talk.id, first)

    oldest = kept.conversations.items("t1", talk.id, Asked(limit=2, is_ascending=True))
    rest = kept.conversations.items("t1", talk.id, Asked(after=oldest.last_id, is_ascending=True))
    newest = kept.conversations.items("t1", talk.id, Asked(limit=1))

    assert (texts(oldest.data), oldest.has_more, texts(rest.data), rest.has_more) == (
        ["one", "two"],
        True,
        ["one"],
        False,
    )
    assert newest.data == again and newest.has_more and newest.first_id not in (first[0]["id"], None)
    assert texts(kept.conversations.history("t1", talk.id).items) == ["one", "two", "one"]


def test_a_conversation_lives_from_what_is_added(kept: Shelves) -> None:
    """Its time begins anew; past it, it is not there."""
    talk = kept.conversations.begin(ADA, {}, [])
    kept.clock.advance(KEPT_S - 1)
    kept.conversations.add(ADA, talk.id, items.said("one"))
    kept.clock.advance(KEPT_S - 1)
    assert kept.conversations.get("t1", talk.id) == talk
    kept.clock.advance(2)
    with pytest.raises(ResourceNotFound):
        kept.conversations.history("t1", talk.id)


def test_a_conversation_is_bounded(kept: Shelves) -> None:
    """What an engine would be told in bytes, and its items; what is removed makes room again."""
    talk = kept.conversations.begin(ADA, {}, items.said("x" * conversations.HISTORY_BYTES_MAX))
    with pytest.raises(ContextExceeded, match="bytes"):
        kept.conversations.history("t1", talk.id)
    with pytest.raises(ContextExceeded, match="bytes"):
        kept.conversations.add(ADA, talk.id, items.said("more"))
    (large,) = kept.conversations.items("t1", talk.id, Asked()).data
    kept.conversations.remove("t1", talk.id, large["id"])
    assert kept.conversations.history("t1", talk.id).items == []

    many = [{"id": f"m{number}", "type": "message"} for number in range(conversations.ITEMS_MAX)]
    kept.conversations.add(ADA, talk.id, many)
    with pytest.raises(ContextExceeded, match="items"):
        kept.conversations.add(ADA, talk.id, items.said("one more"))


def test_what_is_added_to_a_deleted_one_is_dropped(kept: Shelves) -> None:
    """A response that ended after its conversation was deleted is stored without it."""
    talk = kept.conversations.begin(ADA, {}, [])
    kept.conversations.delete("t1", talk.id)
    kept.put("r1", conversation_id=talk.id)
    assert kept.shelf.get("t1", "r1").id == "r1" and kept.count("conversation_items") == 0
