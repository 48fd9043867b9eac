"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

import random

import pytest

from serving.gateway.answers.stops import StopSearch


def searched(pieces: list[str], stops: list[str], *, keeps_match: bool = False) -> tuple[str, str | None]:
    """The text that goes on, and what ended it."""
    search = StopSearch(stops, keeps_match=keeps_match)
    text = "".join(map(search.feed, pieces))
    return text + (search.rest() if search.matched is None else ""), search.matched


@pytest.mark.parametrize(
    ("text", "stops", "left", "matched"),
    [
        ("The sum is forty-two.", ["forty"], "The sum is ", "forty"),
        ("The sum", ["summer"], "The sum", None),
        ("aaab", ["aab"], "a", "aab"),
        ("xab", ["b", "ab"], "x", "ab"),
        ("one two", ["two", "one"], "", "one"),
        ("abcd", ["abcd", "bc"], "a", "bc"),
        ("text", [], "text", None),
        ("naïve 😀 end", ["😀"], "naïve ", "😀"),
    ],
)
def test_the_match_and_all_after_it_is_cut(text: str, stops: list[str], left: str, matched: str | None) -> None:
    """However the text is cut into pieces: the match that is complete first counts, of two the longer."""
    assert searched([text], stops) == (left, matched)
    assert searched(list(text), stops) == (left, matched)
    for seed in range(20):
        cut = random.Random(seed).randrange(len(text) + 1)
        assert searched([text[:cut], text[cut:]], stops) == (left, matched)


def test_the_match_is_kept_where_the_client_wants_it() -> None:
    """`include_stop_str_in_output`: the match stays, all after it is cut."""
    assert searched(list("The sum is forty-two."), ["forty"], keeps_match=True) == ("The sum is forty", "forty")


def test_only_what_may_become_a_match_is_held_back() -> None:
    """A stream goes on up to the beginning of what may still be a match, and no further."""
    search = StopSearch(["</end>"], keeps_match=False)
    assert [search.feed(piece) for piece in ("a <", "b <", "/e", "nd", "x")] == ["a ", "<b ", "", "", "</endx"]
    assert search.rest() == ""
