"""Wishes: what a body says of memory is taken out of it."""

from __future__ import annotations

import pytest

from serving.errors import InvalidRequest
from serving.gateway.stored import wishes
from serving.gateway.stored.wishes import Wish


def test_what_is_said_of_memory_is_taken_out() -> None:
    """No engine sees any of it; absent and null are OpenAI's defaults, by which a response is stored."""
    body: dict[str, object] = {"input": "x", "store": None, "background": False, "conversation": {"id": "conv_1"}}
    assert wishes.taken(body) == Wish(True, False, None, "conv_1") and body == {"input": "x"}
    assert wishes.taken({"store": False, "previous_response_id": "resp_1"}) == Wish(False, False, "resp_1", None)
    assert wishes.taken({"conversation": "conv_1", "background": True}) == Wish(True, True, None, "conv_1")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"store": "yes"}, "store"),
        ({"background": 1}, "background"),
        ({"previous_response_id": 1}, "previous_response_id"),
        ({"conversation": {"name": "x"}}, "conversation.id"),
        ({"previous_response_id": "a", "conversation": "b"}, "previous_response_id"),
        ({"background": True, "store": False}, "store"),
    ],
)
def test_what_cannot_be_is_refused(body: dict[str, object], param: str) -> None:
    """With the field's name."""
    with pytest.raises(InvalidRequest) as refused:
        wishes.taken(body)
    assert (refused.value.param or "").startswith(param.partition(".")[0])
