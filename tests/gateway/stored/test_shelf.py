"""Shelf: what is kept of responses, in either database."""

from __future__ import annotations

import msgspec
import pytest

from serving.errors import ContextExceeded, InvalidRequest, PreviousResponseNotFound, ResourceNotFound
from serving.gateway.store.store import Store
from serving.gateway.stored import conversations, estate, shelf, sweeping
from serving.gateway.stored.estate import Whose
from tests.gateway.places import Place
from tests.gateway.stored.shelves import ADA, BOB, KEPT_S, RIVAL, Shelves, answer, texts


@pytest.fixture
def kept(store: Store, place: Place) -> Shelves:
    return Shelves(store, place.home)


def test_nothing_is_readable_in_the_database(kept: Shelves, place: Place) -> None:
    """Neither what was said nor what was answered, nor metadata, in any table, in the file and its log, or in a dump of the columns."""
    kept.put("r1", "canary said")
    talk = kept.conversations.begin(ADA, {"topic": "canary topic"}, [])
    kept.put("r2", "canary in talk", conversation_id=talk.id)
    kept.shelf.keep_events("t1", "r1", 0, 1, b"event: canary\n\n")

    tables = ("responses", "response_events", "conversations", "conversation_items")
    assert [len(kept.rows(it)) for it in tables] == [2, 1, 1, 2]
    assert "canary" not in repr([kept.rows(it) for it in tables])
    assert not [it for it in place.home.iterdir() if b"canary" in it.read_bytes()]


def test_a_chain_is_what_was_said_and_answered(kept: Shelves) -> None:
    """From its beginning, whichever branches off it."""
    kept.put("r1", "one")
    kept.put("r2", "two", previous_id="r1", ancestors=["r1"])
    kept.put("r3", "other", previous_id="r1", ancestors=["r1"])

    past = kept.shelf.past("t1", "r2")

    assert texts(past.items) == ["one", "answer to one", "two", "answer to two"]
    assert list(past.ancestors) == ["r1", "r2"] and past.size_bytes > 0


def test_what_is_gone_on_from_lives_as_long_as_what_goes_on(kept: Shelves) -> None:
    """A conversation of months loses no beginning; one that no one goes on with is over after its time, and not there from then on."""
    kept.put("r1")
    kept.clock.advance(KEPT_S - 10)
    kept.put("r2", previous_id="r1", ancestors=["r1"])
    kept.clock.advance(KEPT_S - 10)
    assert len(kept.shelf.past("t1", "r2").items) == 4

    kept.clock.advance(20)
    for response_id in ("r1", "r2"):
        with pytest.raises(ResourceNotFound, match=f"Response with id '{response_id}' not found"):
            kept.shelf.get("t1", response_id)
        with pytest.raises(PreviousResponseNotFound, match=r"not found\. It has expired\.$"):
            kept.shelf.past("t1", response_id)


def test_how_a_response_has_gone_is_told_for_a_week(kept: Shelves) -> None:
    """Also once it was swept; to its own tenant, and not of what an operator erased."""
    for response_id, caller in (("r1", ADA), ("r2", ADA), ("other", RIVAL)):
        kept.put(response_id, caller=caller)
    kept.shelf.delete("t1", "r1")
    kept.clock.advance(KEPT_S)
    sweeping.expire(kept.store, kept.clock())
    sweeping.expire(kept.store, kept.clock())

    def told(response_id: str) -> str:
        with pytest.raises(PreviousResponseNotFound) as found:
            kept.shelf.past("t1", response_id)
        return found.value.message.partition("not found.")[2].strip()

    # What was deleted a month ago is told no more.
    assert [told(it) for it in ("r1", "r2", "other")] == ["", "It has expired.", ""]
    kept.put("r3")
    kept.shelf.delete("t1", "r3")
    assert (told("r3"), kept.count("gone_responses")) == ("It was deleted.", 3)
    estate.erase(kept.store, Whose("t1"), clock=kept.clock)
    assert (told("r3"), kept.count("gone_responses")) == ("", 1)
    kept.clock.advance(sweeping.TOLD_S)
    sweeping.expire(kept.store, kept.clock())
    assert kept.count("gone_responses") == 0


def test_items_of_answers_are_found_by_their_ids(kept: Shelves) -> None:
    """Of one's own tenant's responses while they are there, those that ran in the background included; within the bound of a chain."""
    kept.put("r1", "one")
    kept.put("r2", status="queued", gateway_id="g")
    kept.put("other", caller=RIVAL)
    new = shelf.New(caller=ADA, id="r2", created_at=0.0, said=[])
    kept.shelf.end(new, answer("r2", "two"), "completed")
    wanted = ["msg_r2", "msg_r1", "msg_other", "msg_none"]
    found = kept.shelf.referred("t1", wanted)
    assert (sorted(texts(found.items)), found.size_bytes > 0) == (["answer to one", "answer to two"], True)
    kept.shelf.delete("t1", "r1")
    assert texts(kept.shelf.referred("t1", wanted).items) == ["answer to two"]
    assert kept.count("response_items") == 2
    kept.put("r3", "x" * conversations.HISTORY_BYTES_MAX)
    with pytest.raises(ContextExceeded, match="bytes"):
        kept.shelf.referred("t1", ["msg_r3"])


def test_a_chain_without_its_beginning_is_none(kept: Shelves) -> None:
    """The id that is missing is named, with how it has gone; another tenant's is told as one that never was."""
    kept.put("r1")
    kept.put("r2", previous_id="r1")
    kept.put("other", caller=RIVAL)
    kept.put("r3", previous_id="other")
    kept.shelf.delete("t1", "r1")

    kept.shelf.delete("t2", "other")
    told = [("r1", "r1", " It was deleted."), ("r2", "r1", " It was deleted.")]
    told += [("r3", "other", ""), ("other", "other", ""), ("none", "none", ""), ("\0'", "\0'", "")]
    for response_id, missing, gone in told:
        with pytest.raises(PreviousResponseNotFound) as found:
            kept.shelf.past("t1", response_id)
        assert found.value.message == f"Previous response with id '{missing}' not found.{gone}"
    for response_id in ("other", "none", "\0", "x" * 99):
        with pytest.raises(ResourceNotFound):
            kept.shelf.get("t1", response_id)
        with pytest.raises(ResourceNotFound):
            kept.shelf.delete("t1", response_id)


def test_a_chain_is_bounded(kept: Shelves) -> None:
    """In responses and in bytes: a 400 with the code of a prompt that is too long."""
    assert (shelf.CHAIN_MAX, conversations.HISTORY_BYTES_MAX) == (512, 8 * 1024 * 1024)
    kept.put("r0", "x" * (4 * 1024 * 1024))
    kept.put("r1", "x" * (4 * 1024 * 1024), previous_id="r0")
    with pytest.raises(ContextExceeded, match="bytes"):
        kept.shelf.past("t1", "r1")

    short = shelf.Shelf(kept.store, kept.vault, kept.conversations, KEPT_S, kept.clock, chain_max=2)
    kept.put("s0")
    kept.put("s1", previous_id="s0")
    kept.put("s2", previous_id="s1")
    assert list(short.past("t1", "s1").ancestors) == ["s0", "s1"]
    with pytest.raises(ContextExceeded, match="more than 2 others"):
        short.past("t1", "s2")


def test_a_response_in_the_background_ends_once(kept: Shelves) -> None:
    """What ended it first stays: its gateway's end, a cancellation, the gateway's death."""
    kept.put("r1", status="queued", gateway_id="g")
    kept.shelf.advance("r1", "in_progress")
    assert kept.shelf.get("t1", "r1").status == "in_progress" and kept.shelf.runs(["r1", "r2"]) == {"r1"}
    assert msgspec.json.decode(kept.shelf.get("t1", "r1").response)["status"] == "in_progress"
    with pytest.raises(PreviousResponseNotFound):
        kept.shelf.past("t1", "r1")
    new = shelf.New(caller=ADA, id="r1", created_at=0.0, said=[])
    assert kept.shelf.end(new, answer("r1", "x"), "completed")
    assert not kept.shelf.end(new, answer("r1", "x", "failed"), "failed")
    assert kept.shelf.cancel("t1", "r1").status == "completed"

    kept.put("r2", status="queued", gateway_id="g")
    cancelled = kept.shelf.cancel("t1", "r2")
    assert (cancelled.status, msgspec.json.decode(cancelled.response)["status"]) == ("cancelled", "cancelled")
    kept.put("r3")
    with pytest.raises(InvalidRequest, match="Cannot cancel a synchronous response"):
        kept.shelf.cancel("t1", "r3")


def test_events_are_read_behind_a_number(kept: Shelves) -> None:
    """In pieces, the one with the next event first."""
    kept.put("r1", status="in_progress", gateway_id="g")
    for first in (0, 3, 6):
        kept.shelf.keep_events("t1", "r1", first, first + 2, f"piece {first}".encode())
    assert kept.shelf.events("t1", "r1", 4) == [b"piece 3", b"piece 6"]
    assert kept.shelf.events("t1", "r1", 8) == [] and kept.shelf.last_number("r1") == 8
    assert kept.shelf.last_number("none") == -1


def test_no_event_outlives_its_response(kept: Shelves) -> None:
    """Deleted while its stream is made: the gateway that makes it hears of that later, and keeps no more of it."""
    kept.put("r1", status="in_progress", gateway_id="g")
    kept.shelf.keep_events("t1", "r1", 0, 1, b"said")
    kept.shelf.delete("t1", "r1")
    kept.shelf.keep_events("t1", "r1", 2, 3, b"said")
    assert kept.count("response_events") == 0


def test_what_was_answered_in_the_background_counts_in_a_chain(kept: Shelves) -> None:
    """Its size is that of what it became, and not of what it was when it began."""
    kept.put("r1", status="queued", gateway_id="g")
    new = shelf.New(caller=ADA, id="r1", created_at=0.0, said=[])
    kept.shelf.end(new, answer("r1", "x" * conversations.HISTORY_BYTES_MAX), "completed")
    with pytest.raises(ContextExceeded, match="bytes"):
        kept.shelf.past("t1", "r1")


def test_what_is_gone_on_from_is_kept_as_long_as_what_goes_on(kept: Shelves) -> None:
    """Where all is kept for a day as well."""
    brief = shelf.Shelf(kept.store, kept.vault, kept.conversations, 86_400.0, kept.clock)
    brief.put(shelf.New(caller=ADA, id="r1", created_at=0.0, said=[]), answer("r1", "x"), "completed")
    kept.clock.advance(80_000)
    second = shelf.New(caller=ADA, id="r2", created_at=0.0, said=[], previous_id="r1", ancestors=["r1"])
    brief.put(second, answer("r2", "x"), "completed")
    kept.clock.advance(80_000)
    assert list(brief.past("t1", "r2").ancestors) == ["r1", "r2"]


def test_input_is_all_that_a_response_was_made_of(kept: Shelves) -> None:
    """As far as it is still there."""
    kept.put("r1", "one")
    kept.put("r2", "two", previous_id="r1", caller=BOB)
    assert texts(kept.shelf.input_of("t1", "r2")) == ["one", "answer to one", "two"]
    kept.shelf.delete("t1", "r1")
    assert texts(kept.shelf.input_of("t1", "r2")) == ["two"]
