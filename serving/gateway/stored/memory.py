"""Memory: what calls ask of what is stored, from the event loop: the database is asked in threads of its own (a bulkhead)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import msgspec

from serving.gateway import policies
from serving.gateway.dialects.dialect import Body
from serving.gateway.dialects.items import Continued
from serving.gateway.http.asgi import Responder
from serving.gateway.nouns import Caller
from serving.gateway.relay.sink import Sink
from serving.gateway.stored import items, keeping, wishes
from serving.gateway.stored.conversations import Conversations, Past
from serving.gateway.stored.keeping import KeepingSink
from serving.gateway.stored.shelf import New, Shelf
from serving.gateway.stored.turn import Turn

#: A hanging database takes these threads and no others.
THREADS = 2

T = TypeVar("T")


class Memory:
    """What one gateway knows to do with the shelf that all share. `clock` is in seconds since the epoch."""

    def __init__(self, shelf: Shelf, conversations: Conversations, clock: Callable[[], float]) -> None:
        self.shelf = shelf
        self.conversations = conversations
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="stored")

    @staticmethod
    def serves(caller: Caller) -> bool:
        """Does this caller's tenant have responses stored?"""
        return policies.stores(caller.tenant_policy, caller.key_policy)

    async def done(self, work: Callable[..., T], *args: object) -> T:
        """What `work` returns or raises, done in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def recalled(self, caller: Caller, body: Body) -> Turn:
        """The turn that a body wants, whose `input` then goes on from what was said before.

        Raises InvalidRequest and its kinds, and ResourceNotFound for a conversation, or an item that it refers to, that there is not.
        """
        wish = wishes.taken(body)
        given: Any = body.get("input")
        past = Past()
        if wish.previous_id is not None:
            past = await self.done(self.shelf.past, caller.tenant_id, wish.previous_id)
        elif wish.conversation_id is not None:
            past = await self.done(self.conversations.history, caller.tenant_id, wish.conversation_id)
        if names := items.references(given):
            before = {str(item.get("id")) for item in past.items}
            found = await self.done(self.shelf.referred, caller.tenant_id, names)
            given = items.resolved(given, {item["id"]: item for item in found.items}, before) or None
            body["input"] = given
            past = msgspec.structs.replace(past, size_bytes=past.size_bytes + found.size_bytes)
        if past.items:
            body["input"] = Continued(items.carried(past.items), given)
        return Turn(caller, wish, past, items.fresh_id("resp"), self._clock(), given)

    def sink(self, turn: Turn | None, client: Responder, take: Callable[[int], None], *, is_streamed: bool) -> Sink:
        """Where the answer to a call goes whose client waits for it; `take` takes the memory in which a whole one waits."""
        if turn is None or not turn.is_kept:
            return client

        def put(response: bytes) -> None:
            self.shelf.put(new(turn), response, keeping.status_of(response))

        return KeepingSink(client, partial(self.done, put), take, is_streamed=is_streamed)


def new(turn: Turn, gateway_id: str | None = None, *, is_streamed: bool = False) -> New:
    """What is kept of a turn beside its response; `gateway_id` runs it in the background."""
    return New(
        caller=turn.caller,
        id=turn.id,
        created_at=turn.created_at,
        said=turn.said(),
        stores=turn.wish.stores,
        previous_id=turn.wish.previous_id,
        ancestors=turn.past.ancestors,
        conversation_id=turn.wish.conversation_id,
        gateway_id=gateway_id,
        is_streamed=is_streamed,
    )
