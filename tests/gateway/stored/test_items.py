"""Items: as they are listed, by pages, and as an engine is told of them again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest, ResourceNotFound
from serving.gateway.stored import items
from serving.gateway.stored.items import Asked

ANSWER = {"type": "message", "role": "assistant", "content": []}
QUESTION = {"type": "message", "role": "user", "content": []}
THOUGHT = {"type": "reasoning"}
CALL = {"type": "function_call"}
OUTPUT = {"type": "function_call_output"}


def test_what_is_referred_to_stands_in_its_place() -> None:
    """What was said before already adds nothing; reasoning that is not there is left to the gateway's memory, all else is missed."""
    found: dict[str, dict[str, Any]] = {"msg_1": {"id": "msg_1", **ANSWER}, "rs_1": {"id": "rs_1", **THOUGHT}}
    said = [{"type": "item_reference", "id": "rs_1"}, {"id": "msg_1"}, {"id": "rs_9"}, {"id": "msg_0"}, QUESTION]
    assert items.references(said) == ["rs_1", "msg_1", "rs_9", "msg_0"]
    assert items.resolved(said, found, {"msg_0"}) == [found["rs_1"], found["msg_1"], {"id": "rs_9"}, QUESTION]
    with pytest.raises(ResourceNotFound, match="Item with id 'msg_0' not found"):
        items.resolved(said, found, ())
    assert [items.references(it) for it in ("text", None, [3, {"id": 4}, {"type": []}, {"id": "\0"}])] == [[]] * 3


def test_what_was_said_is_listed_in_the_long_form() -> None:
    """As OpenAI lists it: with an id, a type, parts and a state; references are not kept."""
    (text,) = items.said("Hello")
    assert (text["type"], text["role"], text["content"]) == (
        "message",
        "user",
        [{"type": "input_text", "text": "Hello"}],
    )
    said = items.said(
        [
            {"role": "assistant", "content": "Hi"},
            {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "item_reference", "id": "rs_1"},
            {"id": "rs_2"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
        ]
    )
    assert [it["id"].partition("_")[0] for it in said] == ["msg", "fc", "fco"] and said[1]["id"] == "fc_1"
    assert said[0]["content"][0]["type"] == "output_text" and said[2]["status"] == "completed"


def test_an_id_that_no_path_or_database_takes_is_not_kept() -> None:
    """PostgreSQL's texts have no NUL, and a slash ends a name in a path."""
    for odd in ("a\0b", "a/b", "", "x" * 129, "ä", "a\n", 5):
        (item,) = items.said([{"role": "user", "content": "x", "id": odd}])
        assert item["id"] != odd and item["id"].startswith("msg_")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([THOUGHT, ANSWER], [ANSWER]),
        ([QUESTION, THOUGHT, CALL, OUTPUT], [QUESTION, THOUGHT, CALL, OUTPUT]),
        # A preamble is no final answer.
        ([THOUGHT, ANSWER, CALL, OUTPUT], [THOUGHT, ANSWER, CALL, OUTPUT]),
        ([THOUGHT, ANSWER, THOUGHT, CALL, OUTPUT], [THOUGHT, ANSWER, THOUGHT, CALL, OUTPUT]),
        (
            [THOUGHT, CALL, OUTPUT, THOUGHT, ANSWER, QUESTION, THOUGHT, CALL],
            [CALL, OUTPUT, ANSWER, QUESTION, THOUGHT, CALL],
        ),
    ],
)
def test_reasoning_is_dropped_with_the_final_answer(given: list[Any], told: list[Any]) -> None:
    """Up to the last one; behind it a loop of tool calls runs, which needs it."""
    assert items.carried(given) == told


@given(count=st.integers(0, 8), limit=st.integers(1, 3), is_ascending=st.booleans())
def test_pages_are_the_whole_list(count: int, limit: int, is_ascending: bool) -> None:
    """One behind the other, in the order that was asked for, each item once."""
    listed: list[items.Item] = [{"id": str(number)} for number in range(count)]
    seen: list[items.Item] = []
    page = items.page(listed, Asked(None, limit, is_ascending), "x")
    seen += page.data
    while page.has_more:
        page = items.page(listed, Asked(page.last_id, limit, is_ascending), "x")
        seen += page.data
    assert seen == (listed if is_ascending else listed[::-1])


def test_a_page_that_cannot_be_is_refused() -> None:
    """Behind an item that there is not, of too many, in no order."""
    with pytest.raises(ResourceNotFound, match="Item with id 'x' not found in that"):
        items.page([], Asked("x"), "that")
    endless = {"limit": "000000001" + "0" * 5000}
    for query in ({"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"limit": "0000000010"}, endless, {"order": "up"}):
        with pytest.raises(InvalidRequest):
            items.asked(query.get)
    assert items.asked({"after": "a", "limit": "5", "order": "asc"}.get) == Asked("a", 5, True)
