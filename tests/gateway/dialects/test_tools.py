"""Tools: own ones are sent on, hosted ones left out and named, and a choice that cannot be kept is refused."""

from __future__ import annotations

from typing import Any

import pytest

from serving.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.dialects.chat import CHAT
from serving.gateway.dialects.messages import MESSAGES
from serving.gateway.dialects.responses import RESPONSES
from tests.gateway.calls import draft, sent

FUNCTION = {"type": "function", "name": "f"}
HOSTED: list[tuple[dict[str, Any], bytes]] = [
    ({"type": "web_search"}, b"web_search"),
    ({"type": "web_search_preview", "user_location": {}}, b"web_search_preview"),
    ({"type": "namespace", "name": "agents", "tools": []}, b"namespace:agents"),
    (
        {"type": "namespace", "name": "agents", "tools": [{"type": "custom", "name": "c"}]},
        b"namespace:agents__c",
    ),
    (
        {"type": "namespace", "name": "n" * 124, "tools": [FUNCTION | {"name": "long"}]},
        b"namespace:" + b"n" * 124 + b"__long",
    ),
    ({"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}}, b"custom:apply_patch"),
    ({"type": "local_shell"}, b"local_shell"),
    ({"type": "tool_search"}, b"tool_search"),
    ({"type": "image_generation", "output_format": "png"}, b"image_generation"),
    ({"type": "code_interpreter", "container": {"type": "auto"}}, b"code_interpreter"),
    ({"type": "bad\r\nset-cookie: x"}, b"bad__set-cookie:_x"),
]


@pytest.mark.parametrize(("tool", "said"), HOSTED, ids=[said.decode() for _, said in HOSTED])
def test_a_hosted_tool_is_left_out_and_the_answer_says_so(tool: dict[str, Any], said: bytes) -> None:
    """The client goes on with the others."""
    one = draft(RESPONSES, tools=[tool, FUNCTION, tool])
    assert [it["name"] for it in sent(one.finish("m", "salt"))["tools"]] == ["f"]
    assert one.headers() == [(b"x-left-out", said)]


def test_functions_of_a_namespace_have_flat_names() -> None:
    """In the list, in a choice among them, and in the calls that come back."""
    group = {"type": "namespace", "name": "agents", "description": "d", "tools": [FUNCTION, FUNCTION | {"name": "g"}]}
    choice = {"type": "function", "namespace": "agents", "name": "g"}
    called = {"type": "function_call", "namespace": "agents", "name": "g", "arguments": "{}", "call_id": "c"}
    one = draft(RESPONSES, tools=[group, FUNCTION], tool_choice=choice, input=[called])
    body = sent(one.finish("m", "salt"))
    assert [tool["name"] for tool in body["tools"]] == ["agents__f", "agents__g", "f"] and one.headers() == []
    assert body["tool_choice"]["name"] == body["input"][0]["name"] == "agents__g"
    assert "namespace" not in body["input"][0]
    with pytest.raises(InvalidRequest) as refused:
        draft(RESPONSES, tools=[FUNCTION, {"type": "namespace", "tools": []}])
    assert refused.value.param == "tools[1]"


def test_without_hosted_tools_nothing_is_said() -> None:
    """The header is there where something is missing."""
    assert draft(RESPONSES, tools=[FUNCTION]).headers() == []


def test_with_hosted_tools_alone_no_tools_are_sent() -> None:
    """The model answers without; tools of a chat and of messages are treated alike."""
    chat = draft(CHAT, tools=[{"type": "custom", "custom": {"name": "p"}}], tool_choice="auto")
    messages = draft(MESSAGES, tools=[{"type": "bash_20250124", "name": "bash"}], tool_choice={"type": "auto"})
    for one, said in ((chat, b"custom:p"), (messages, b"bash_20250124")):
        assert not sent(one.finish("m", "salt")).keys() & {"tools", "tool_choice"}
        assert one.headers() == [(b"x-left-out", said)]


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("required", "no tool is left: tools of type 'web_search' do not run here"),
        ({"type": "web_search"}, "names 'web_search', a tool that does not run here"),
        ({"type": "function", "name": "g"}, "names 'g', which is not among the 'tools'"),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]},
            "no tool is left: tools of type 'web_search' do not run here",
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]}, "names 'g'"),
        ({"type": "function"}, "Missing required parameter: 'tool_choice.name'"),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_kept_is_refused(choice: object, sentence: str) -> None:
    """An answer without the call that was demanded would be another answer."""
    with pytest.raises(InvalidRequest, match=sentence):
        draft(RESPONSES, tools=[{"type": "web_search"}], tool_choice=choice)


@pytest.mark.parametrize("kind", ["mcp", "file_search"])
def test_a_tool_that_points_elsewhere_is_refused(kind: str) -> None:
    """It names a resource that only its vendor reaches: an answer without it would be about something else."""
    with pytest.raises(UnsupportedParameter, match=kind) as refused:
        draft(RESPONSES, tools=[FUNCTION, {"type": kind}])
    assert refused.value.param == "tools[1].type"


def test_a_fault_in_a_tool_is_named_by_its_place_in_the_request() -> None:
    """Left-out ones before it count."""
    with pytest.raises(InvalidRequest) as refused:
        draft(RESPONSES, tools=[{"type": "web_search"}, {"type": "function", "name": "no spaces"}])
    assert refused.value.param == "tools[1].name"
    for tools in ("x", [7], [{"type": 7}], [FUNCTION] * 129):
        with pytest.raises(InvalidRequest):
            draft(RESPONSES, tools=tools)
