"""Turn: one call that is stored, or goes on from what is: what it adds, and what its answer says of that."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.gateway.answers.reasoning import Keeper
from serving.gateway.dialects.call import Call, Draft
from serving.gateway.nouns import Caller
from serving.gateway.stored import items
from serving.gateway.stored.conversations import Past
from serving.gateway.stored.items import Item
from serving.gateway.stored.wishes import Wish


class Turn(msgspec.Struct, frozen=True):
    """What a call of one caller wants of memory, with what was there."""

    caller: Caller
    wish: Wish
    past: Past
    id: str
    #: Seconds since the epoch.
    created_at: float
    #: `input` as the client sent it.
    given: Any

    @property
    def is_kept(self) -> bool:
        """Is anything to be written when it is answered?"""
        return self.wish.stores or self.wish.conversation_id is not None

    def said(self) -> list[Item]:
        """What it adds before its answer, once that has been checked."""
        return [] if self.given is None else items.said(self.given)

    def keeper(self, keeper: Keeper) -> Keeper:
        """What the gateway remembers of reasoning, but for stored calls: theirs is stored beside them, or dropped for good."""
        calls = frozenset(str(item["call_id"]) for item in self.past.items if item.get("type") == "function_call")
        return _Beside(keeper, calls) if calls else keeper

    def echoed(self, draft: Draft) -> Draft:
        """The draft of the call, whose answer says what is stored of it."""
        wish = self.wish
        own: dict[str, Any] = {
            "id": self.id,
            "created_at": int(self.created_at),
            "store": wish.stores,
            "background": wish.is_background,
            "previous_response_id": wish.previous_id,
            "conversation": None if wish.conversation_id is None else {"id": wish.conversation_id},
        }
        return msgspec.structs.replace(draft, echoed=draft.echoed | own)

    def shell(self, call: Call) -> dict[str, Any]:
        """The response before anything is answered, as OpenAI's API shows one that waits."""
        defaults: dict[str, Any] = {
            "object": "response",
            "status": "queued",
            "model": call.model,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "text": {"format": {"type": "text"}},
            "usage": None,
        }
        return defaults | dict(call.asked.echoed)


class _Beside:
    """A Keeper that knows nothing of these calls."""

    def __init__(self, keeper: Keeper, calls: frozenset[str]) -> None:
        self._calls = calls
        self.keep = keeper.keep
        self.seal = keeper.seal
        self.open = keeper.open
        self._recall = keeper.recall

    def recall(self, call_id: str) -> str | None:
        return None if call_id in self._calls else self._recall(call_id)
