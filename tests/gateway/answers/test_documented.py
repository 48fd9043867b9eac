"""The documented keys of answers."""

from __future__ import annotations

from serving.gateway.answers import documented


def test_what_is_not_documented_is_left_out_at_any_depth() -> None:
    """Lists item by item; a value without a shape of its own passes as it is."""
    shape = {"id": None, "choices": {"index": None, "logprobs": None}}
    answer = {"id": 1, "secret": 2, "choices": [{"index": 0, "token_ids": [1], "logprobs": {"any": 1}}, None]}
    assert documented.pruned(answer, shape) == {"id": 1, "choices": [{"index": 0, "logprobs": {"any": 1}}, None]}
    assert documented.pruned(None, shape) is None


def test_only_an_object_is_an_answer() -> None:
    """What is none passes untouched, so it is not taken for one."""
    assert documented.read(b'{"id":1,"x":2}', {"id": None}) == {"id": 1}
    assert [documented.read(body, {}) for body in (b"[]", b"{", b"\xff", b"")] == [None] * 4
