"""Turn: what a call adds, and what its answer says of memory."""

from __future__ import annotations

from serving.gateway.answers.reasoning import FORGETFUL
from serving.gateway.dialects.responses import RESPONSES
from serving.gateway.stored.conversations import Past
from serving.gateway.stored.turn import Turn
from serving.gateway.stored.wishes import Wish
from tests.gateway.calls import CALLER, draft


class Remembers:
    """A keeper that knows every call."""

    keep = FORGETFUL.keep
    seal = FORGETFUL.seal
    open = FORGETFUL.open

    def recall(self, call_id: str) -> str | None:
        return f"why {call_id}"


def turn(wish: Wish, past: Past = Past()) -> Turn:  # noqa: B008 It is frozen.
    return Turn(CALLER, wish, past, "resp_1", 12.5, "Hello")


def test_the_answer_says_what_is_stored() -> None:
    """Its id is the gateway's, which the next call names; a shell says the same before there is an answer."""
    one = turn(Wish(previous_id="resp_0", is_background=True))
    call = one.echoed(draft(RESPONSES, metadata={"a": "b"})).finish("m", "salt")
    own = {"id": "resp_1", "created_at": 12, "store": True, "background": True, "previous_response_id": "resp_0"}
    assert call.asked.echoed == own | {"conversation": None, "metadata": {"a": "b"}}
    shell = one.shell(call)
    assert shell.items() >= (own | {"status": "queued", "output": [], "metadata": {"a": "b"}, "model": "m"}).items()
    assert turn(Wish(conversation_id="conv_1")).echoed(draft(RESPONSES)).echoed["conversation"] == {"id": "conv_1"}


def test_what_is_to_be_written_is_known() -> None:
    """A response that is not stored may still belong to a conversation."""
    assert turn(Wish()).is_kept and turn(Wish(stores=False, conversation_id="c")).is_kept
    assert not turn(Wish(stores=False, previous_id="r")).is_kept
    assert turn(Wish()).said()[0]["content"] == [{"type": "input_text", "text": "Hello"}]


def test_the_gateways_own_memory_of_reasoning_is_for_other_calls() -> None:
    """Stored calls have theirs beside them, or it was dropped with the answer."""
    keeper = turn(Wish(), Past([{"type": "function_call", "call_id": "c1"}])).keeper(Remembers())
    assert (keeper.recall("c1"), keeper.recall("c2")) == (None, "why c2")
