"""Items: old turns never stop a session, and what is said now is read or refused by its place."""

from __future__ import annotations

from typing import Any

import pytest

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.answers.reasoning import Forgetful
from serving.gateway.dialects.responses import RESPONSES
from tests.gateway.calls import call, draft, sent

CALL = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
USER = {"role": "user", "content": "a"}
SENTENCE = "[Image left out: the models served here read text.]"


def read(*items: dict[str, Any]) -> list[dict[str, Any]]:
    """The items as the engine gets them."""
    kept: list[dict[str, Any]] = sent(call(RESPONSES, input=list(items)))["input"]
    return kept


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "a"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "reasoning", "summary": []},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "a"}], "id": "rs_1"},
        CALL,
    ],
)
def test_items_of_text_are_sent_on_as_they_are(item: dict[str, object]) -> None:
    """Messages, reasoning and function calls."""
    assert read(item) == [item]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "robot", "content": "a"}, "input[0].role"),
        ({"role": "user"}, "input[0].content"),
        ({"role": "user", "content": 7}, "input[0].content"),
        ({"role": "user", "content": [7]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input[0].content[0]"),
        ({"role": "user", "content": [{"type": "new"}]}, "input[0].content[0]"),
        ({"type": "function_call", "arguments": "{}", "call_id": "c"}, "input[0].name"),
        ({"type": "function_call_output", "call_id": "other", "output": "a"}, "input[0]"),
        ({"type": "function_call_output", "call_id": "c"}, "input[0].output"),
        ({"type": "item_reference", "id": "msg_1"}, "input[0]"),
        ({"id": "fc_1"}, "input[0]"),
        ({"type": 7}, "input[0].type"),
        ({"type": "web_search_call", "id": "ws_1", "status": "completed"}, "input"),
    ],
    ids=str,
)
def test_half_an_item_is_refused_by_its_place(item: dict[str, object], param: str) -> None:
    """What the engine would fail on is the client's 400, and its sentence says where."""
    with pytest.raises(InvalidRequest) as refused:
        draft(RESPONSES, input=[item])
    assert refused.value.param == param and param in refused.value.message


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("a", "a"),
        ("", ""),
        ([], ""),
        (
            [{"type": "input_text", "text": "18 degrees, "}, {"type": "output_text", "text": "sunny"}],
            "18 degrees, sunny",
        ),
        ([{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:x"}], f"a\n{SENTENCE}"),
        ([{"type": "input_file", "file_data": "AAAA"}], "[File left out: the models served here read text.]"),
        ({"content": "a", "success": True}, "a"),
        ([{"stdout": "a"}], '{"stdout":"a"}'),
    ],
    ids=str,
)
def test_an_output_is_rendered_as_the_plain_string(output: object, text: str) -> None:
    """Parts are joined, media become a sentence, and nothing is dropped in silence."""
    assert read(CALL, {"type": "function_call_output", "call_id": "c", "output": output})[1] == {
        "type": "function_call_output",
        "call_id": "c",
        "output": text,
    }


def test_calls_of_other_tools_are_rendered_as_functions() -> None:
    """With what they were given and what came of it."""
    kept = read(
        {"type": "custom_tool_call", "call_id": "1", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "1", "output": "done"},
        {"type": "local_shell_call", "id": "2", "status": "completed", "action": {"command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "2", "output": "a.txt"},
        {"type": "mcp_call", "id": "3", "name": "ask", "arguments": '{"a":1}', "output": "b", "server_label": "s"},
    )
    assert [(it["type"], it.get("name"), it.get("arguments") or it["output"]) for it in kept] == [
        ("function_call", "apply_patch", '{"input":"*** Begin"}'),
        ("function_call_output", None, "done"),
        ("function_call", "local_shell", '{"action":{"command":["ls"]}}'),
        ("function_call_output", None, "a.txt"),
        ("function_call", "ask", '{"a":1}'),
        ("function_call_output", None, "b"),
    ]


def test_old_items_without_text_are_left_out_and_those_with_some_keep_it() -> None:
    """Searches, compactions, references to reasoning; kinds of a newer API."""
    now = {"role": "user", "content": "Go on."}
    kept = read(
        {"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": "q"}},
        {"type": "compaction", "encrypted_content": "AAAA"},
        {"type": "item_reference", "id": "rs_1"},
        {"type": "additional_tools", "role": "developer", "tools": []},
        {"type": "new", "content": [{"type": "text", "text": "said"}]},
        {"type": "custom_tool_call_output", "call_id": "gone", "output": "alone"},
        now,
    )
    assert [(it["role"], it["content"]) for it in kept] == [
        ("assistant", "said"),
        ("user", "alone"),
        ("user", "Go on."),
    ]


def test_an_answer_in_any_shape_is_read_whole() -> None:
    """Engines read the first part of several, and refuse one with nulls or without its type."""
    part = {"type": "output_text", "text": "a", "annotations": None}
    for content, text in (([part, {"type": "refusal", "refusal": "b"}], "ab"), ([part], "a"), ([], "")):
        for more in ({}, {"type": "message", "id": None, "status": None}):
            (kept,) = read({"role": "assistant", "content": content, **more})
            assert kept == {"type": "message", "role": "assistant", "content": text}


def test_what_a_user_says_is_input_text() -> None:
    """Under whatever name its parts come."""
    kinds = ("input_text", "text", "output_text")
    (kept,) = read({"role": "user", "content": [{"type": kind, "text": "a"} for kind in kinds]})
    assert kept["content"] == [{"type": "input_text", "text": "a"}] * 3


def test_reasoning_is_read_in_any_shape() -> None:
    """Content as text, under other names, or none; what only another service can open is not sent on."""
    plain = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "a"}]}
    for content in ("a", [{"type": "text", "text": "a"}]):
        assert read({"type": "reasoning", "content": content, "id": None, "encrypted_content": "x"}) == [plain]
    empty: list[list[object] | None] = [None, []]
    for nothing in empty:
        assert read({"type": "reasoning", "content": nothing, "summary": []}) == [{"type": "reasoning", "summary": []}]


def test_a_reference_says_how_to_go_on() -> None:
    """The option that makes clients send the items."""
    with pytest.raises(UnsupportedParameter, match="store: false"):
        draft(RESPONSES, input=[{"type": "item_reference", "id": "msg_1"}])


class Kept(Forgetful):
    """A keeper that knows one call and one item."""

    def recall(self, call_id: str) -> str | None:
        return {"c": "by call", "rs_1": "by item"}.get(call_id)

    def open(self, sealed: str) -> str | None:
        return "opened" if sealed == "sealed" else None


@pytest.mark.parametrize(
    ("before", "texts"),
    [
        ([], ["by call"]),
        ([{"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "own"}]}], ["own"]),
        ([{"type": "reasoning", "summary": [], "encrypted_content": "sealed"}], ["opened"]),
        ([{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "lost"}], ["by item"]),
        ([{"type": "reasoning", "summary": [], "encrypted_content": "lost"}], [None, "by call"]),
        ([{"type": "item_reference", "id": "rs_1"}], ["by item"]),
        ([{"type": "item_reference", "id": "rs_2"}], ["by call"]),
        ([{"type": "item_reference", "id": "rs_1"}, {"role": "assistant", "content": "So:"}], ["by item"]),
        ([{"type": "item_reference", "id": "rs_1"}, {"role": "user", "content": "So?"}], ["by item", "by call"]),
    ],
    ids=str,
)
def test_a_call_has_its_reasoning_once(before: list[object], texts: list[str | None]) -> None:
    """The client's own, what it carries sealed, what it refers to, or what was kept with the call, in this order."""
    one = draft(RESPONSES, input=[*before, CALL, CALL | {"call_id": "c"}]).finish("m", "salt", keeper=Kept())
    kept = [item for item in sent(one)["input"] if item.get("type") == "reasoning"]
    assert [item["content"][0]["text"] if "content" in item else None for item in kept] == texts
    assert "encrypted_content" not in str(kept)


def test_references_that_lead_nowhere_leave_something_to_read() -> None:
    """An input of nothing else is a fault of the request."""
    with pytest.raises(InvalidRequest, match="none of its items"):
        call(RESPONSES, input=[{"type": "item_reference", "id": "rs_2"}])


@pytest.mark.parametrize(
    ("item", "output"),
    [
        ({"type": "code_interpreter_call", "id": "c", "code": "1", "outputs": [{"type": "logs", "logs": "2"}]}, "2"),
        ({"type": "file_search_call", "id": "c", "queries": ["q"], "results": [{"text": "found"}]}, "found"),
        ({"type": "mcp_call", "id": "c", "name": "n", "arguments": "{}", "output": None, "error": "no"}, "no"),
    ],
    ids=str,
)
def test_what_came_of_a_hosted_call_is_kept(item: dict[str, object], output: str) -> None:
    """Under whichever name its kind keeps it."""
    made, answered, _ = sent(call(RESPONSES, input=[item, USER]))["input"]
    assert made["call_id"] == answered["call_id"] == "c" and answered["output"] == output


@pytest.mark.parametrize(
    "item",
    [
        {"type": "tool_search_output", "call_id": None, "tools": [{"type": "function", "name": "f"}]},
        {"type": "message", "role": "assistant", "content": None},
        {"role": "assistant", "content": None},
    ],
    ids=str,
)
def test_an_earlier_item_that_says_nothing_is_left_out(item: dict[str, object]) -> None:
    """A vendor's search of tools has no call of the client's, and an answer of calls alone no text."""
    assert sent(call(RESPONSES, input=[item, USER]))["input"] == [USER]
