"""Responses, as recorded from vLLM: what they repeat, how they end, stop strings, calls that nobody offered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.gateway.answers.asked import Asked
from serving.gateway.answers.reasoning import Forgetful
from serving.gateway.answers.response_answers import ResponseAssembly, ResponseShaper
from serving.gateway.nouns import Usage
from tests.gateway.answers.recorded_answers import body, data, names, shaped, stream, whole

PRIVATE = {"input_messages", "output_messages", "kv_transfer_params", "ec_transfer_params", "metrics"}


def streamed(name: str, **asked: Any) -> bytes:
    return shaped(ResponseShaper(Asked(**asked), lambda: Usage(75, 19)), stream(name))


def response(name: str, **asked: Any) -> dict[str, Any]:
    """A whole response put together from a recorded stream."""
    return whole(ResponseAssembly(), streamed(name, **asked))


def given(name: str, **asked: Any) -> dict[str, Any]:
    """A recorded whole response as a client gets it."""
    answer: dict[str, Any] = json.loads(ResponseShaper(Asked(**asked), Usage).whole(body(name)))
    return answer


def text(answer: dict[str, Any]) -> str:
    items = [item for item in answer["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in items for part in item["content"])


@pytest.mark.parametrize("name", ["tiny-responses-reasoned", "tiny-responses-tool"])
def test_private_keys_go_and_numbers_stay_numbers(name: str) -> None:
    """Whole and in every event that carries a response: details of usage are numbers, as clients read them."""
    events = data(streamed(name, offers_tools=True))
    responses = [event["response"] for event in events if "response" in event]
    assert len(responses) == 3
    for answer in (*responses, given(name, offers_tools=True)):
        assert not PRIVATE & answer.keys()
    for details in ("input_tokens_details", "output_tokens_details"):
        assert all(isinstance(value, int) for value in responses[-1]["usage"][details].values())
    assert all("sequence_number" not in event["item"] for event in events if "item" in event)


def test_what_the_client_sent_is_repeated_as_it_was_sent() -> None:
    """Whatever the engine made of it; a format of plain text is said where none was asked."""
    echoed = {"metadata": {"a": "<|call|>"}, "text": {"verbosity": "low"}, "instructions": "Never write <|end|>."}
    for answer in (given("tiny-responses-reasoned", echoed=echoed), response("tiny-responses-reasoned", echoed=echoed)):
        assert answer["text"] == {"format": {"type": "text"}, "verbosity": "low"}
        assert (answer["metadata"], answer["instructions"]) == (echoed["metadata"], echoed["instructions"])
    assert given("tiny-responses-reasoned")["text"] == {"format": {"type": "text"}}


def test_deltas_pass_byte_for_byte() -> None:
    """Only events that carry the response or an item are read."""
    out = streamed("tiny-responses-reasoned")
    for event in stream("tiny-responses-reasoned"):
        if b".delta\n" in event or b"reasoning_text.done\n" in event:
            assert event in out
    assert [event["sequence_number"] for event in data(out)] == list(range(len(data(out))))


@pytest.mark.parametrize("name", ["tiny-responses-reasoned", "tiny-responses-cut12", "tiny-responses-toolcut26"])
def test_the_last_event_is_named_after_the_status(name: str) -> None:
    """And its item has the status that its own last event said."""
    out = streamed(name, offers_tools=True)
    last = data(out)[-1]
    assert names(out)[-1] == last["type"] == f"response.{last['response']['status']}"
    done = [event["item"] for event in data(out) if event["type"] == "response.output_item.done"]
    assert [item["status"] for item in done] == [item["status"] for item in last["response"]["output"]]


def test_a_cut_call_is_incomplete() -> None:
    """So is its response."""
    answer = response("tiny-responses-toolcut26", offers_tools=True)
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (answer["output"][-1]["status"], answer["output"][-1]["arguments"]) == ("incomplete", '{"city')


def test_a_cut_header_is_no_text() -> None:
    """Streamed nothing of such a message comes, whole it is left out."""
    out = streamed("tiny-responses-cut12")
    assert "response.output_text.delta" not in names(out)
    numbers = [event["sequence_number"] for event in data(out)]
    assert numbers == list(range(len(numbers)))
    for answer in (response("tiny-responses-cut12"), given("tiny-responses-cut12")):
        assert [item["type"] for item in answer["output"]] == ["reasoning"] and answer["status"] == "incomplete"


def test_nothing_goes_out_before_something_has_come() -> None:
    """The events that only say that a response has begun wait: until then a fault is an error with its status."""
    shaper = ResponseShaper(Asked(), Usage)
    created, in_progress, added, *_ = stream("tiny-responses-reasoned")
    assert shaper.events(created) == shaper.events(in_progress) == b""
    assert names(shaper.events(added)) == ["response.created", "response.in_progress", "response.output_item.added"]


@pytest.mark.parametrize(
    ("stop", "content"),
    [
        ("42", "The sum is forty-two."),
        ("assistant", "The sum is forty-two."),
        ("forty", "The sum is "),
        ("is f", "The sum "),
        ("The", ""),
        ("two. ", "The sum is forty-two."),
    ],
)
def test_a_stop_string_acts_on_text_only(stop: str, content: str) -> None:
    """The response is complete, its events agree with it, and they are numbered without a gap."""
    out = streamed("tiny-responses-reasoned", stops=(stop,))
    answer = whole(ResponseAssembly(), out)
    assert (text(answer), answer["status"]) == (content, "completed")
    assert all(item["status"] == "completed" for item in answer["output"])
    events = data(out)
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    (done,) = [event["text"] for event in events if event["type"] == "response.output_text.done"]
    assert "".join(deltas) == done == content
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert names(out)[-3:] == ["response.content_part.done", "response.output_item.done", "response.completed"]


def test_a_response_that_a_stop_string_ends_says_what_it_cost() -> None:
    """As the meter has it."""
    usage = response("tiny-responses-reasoned", stops=("forty",))["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (75, 19, 94)


def test_the_match_stays_where_the_client_wants_it() -> None:
    """`include_stop_str_in_output`."""
    assert text(response("tiny-responses-reasoned", stops=("forty",), keeps_stop=True)) == "The sum is forty"


def test_a_call_that_nobody_offered_is_not_handed_out() -> None:
    """Streamed and whole; a response of nothing else is incomplete."""
    out = streamed("tiny-responses-tool")
    assert not any("function_call" in name for name in names(out)) and names(out)[-1] == "response.incomplete"
    numbers = [event["sequence_number"] for event in data(out)]
    assert numbers == list(range(len(numbers)))
    for answer in (whole(ResponseAssembly(), out), given("tiny-responses-tool")):
        assert [item["type"] for item in answer["output"]] == ["reasoning"]
        assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})


def test_a_hosted_tools_call_is_never_handed_out() -> None:
    """Nothing runs it here, whatever the client offered; what follows it moves up."""
    search = json.dumps({"id": "ws_1", "type": "web_search_call", "status": "completed"}).encode()
    item = b'{"item":' + search + b',"output_index":1,"sequence_number":%d,"type":"response.output_item.%s"}'
    hosted = [
        b"event: response.output_item." + kind + b"\ndata: " + item % (13 + at, kind) + b"\n\n"
        for at, kind in enumerate((b"added", b"done"))
    ]
    events = stream("tiny-responses-tool")
    at = next(at for at, event in enumerate(events) if b'"type":"function_call"' in event)
    later = [event.replace(b'"output_index":1', b'"output_index":2') for event in events[at:]]
    shaper = ResponseShaper(Asked(offers_tools=True), Usage)
    out = shaped(shaper, [*events[:at], *hosted, *later])
    assert b"web_search_call" not in out
    assert {event["output_index"] for event in data(out) if "output_index" in event} == {0, 1}


def test_what_is_put_together_is_what_the_engine_gives_whole() -> None:
    """The same keys and the same values, but for ids."""
    answer, said = response("tiny-responses-reasoned"), given("tiny-responses-reasoned")
    for one in (answer, said):
        one.pop("id"), one.pop("created_at")
        for item in one["output"]:
            item.pop("id")
    assert answer == said


class Notes(Forgetful):
    """A keeper that writes down what it is given."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def keep(self, text: str, *ids: str) -> None:
        self.kept |= {it: text for it in ids if it}

    def seal(self, text: str) -> str:
        return f"sealed {text}"


def test_reasoning_is_kept_by_its_id_and_by_that_of_the_call_after_it() -> None:
    """Clients refer to the one or come back with the other."""
    notes = Notes()
    given("tiny-responses-tool", offers_tools=True, keeper=notes)
    assert {"rs_b4136224276290c1", "call_8f6b9c4c6e8640b9"} <= notes.kept.keys()
    assert set(notes.kept.values()) == {"I should look it up."}


def test_reasoning_is_sealed_for_a_client_that_asks() -> None:
    """The same in its own event and in the response; for no other client."""
    events = data(streamed("tiny-responses-tool", offers_tools=True, keeper=Notes(), wants_sealed=True))
    (done,) = (it["item"] for it in events if it["type"].endswith("item.done") and it["item"]["type"] == "reasoning")
    assert done["encrypted_content"] == events[-1]["response"]["output"][0]["encrypted_content"]
    assert done["encrypted_content"] == "sealed I should look it up."
    assert given("tiny-responses-tool", offers_tools=True, keeper=Notes())["output"][0]["encrypted_content"] is None


def test_a_call_comes_back_in_its_namespace() -> None:
    """In every event that names it, and in the response."""
    tools = [{"type": "namespace", "name": "get", "tools": [{"type": "function", "name": "weather"}]}]
    sse = [event.replace(b"get_weather", b"get__weather") for event in stream("tiny-responses-tool")]
    out = shaped(ResponseShaper(Asked(offers_tools=True, echoed={"tools": tools}), lambda: Usage()), sse)
    items = [event["item"] for event in data(out) if event.get("item", {}).get("type") == "function_call"]
    items.append(data(out)[-1]["response"]["output"][1])
    assert [(item["namespace"], item["name"]) for item in items] == [("get", "weather")] * 3
    assert [event["name"] for event in data(out) if "name" in event] == ["weather"] and b"get__weather" not in out
